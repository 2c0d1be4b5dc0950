"""Which positions a compressed cache keeps: a window of observers, and what they look at.

Section numbers refer to ScaleKV (arXiv 2505.19602). Letters: R rows, N heads, L positions of the
last group read, S positions in the cache (those L at the end), W observers, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from var.schedule import Grid

_POOLS: dict[str, Callable[..., Tensor]] = {"max": F.max_pool1d, "mean": F.avg_pool1d}
_SCORES = ("logits", "weights")


@dataclass(frozen=True)
class Selection:
    """How positions are chosen, for each row and head by itself (section 4).

    Attributes:
        window: number of observers, 1 or more; a square, or else the latest positions observe.
        pool: max or mean of neighbours' scores, in the order of the cache. A mean puts whatever is
            near an observer last, as in the published code: observers score minus infinity.
        width: number of neighbours pooled, the position itself included; odd, 1 pools nothing.
        score: what observers vote with: their `logits`, as in the published code, or their
            attention `weights`, as in the paper.

    Raises:
        ValueError: a value out of range.
    """

    window: int = 16
    pool: str = "max"
    width: int = 5
    score: str = "logits"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be 1 or more, got {self.window}")
        if self.width < 1 or self.width % 2 == 0:
            raise ValueError(f"width must be odd and positive, got {self.width}")
        if self.pool not in _POOLS:
            raise ValueError(f"pool must be one of {', '.join(_POOLS)}, got {self.pool}")
        if self.score not in _SCORES:
            raise ValueError(f"score must be one of {', '.join(_SCORES)}, got {self.score}")

    def keep(self, q: Tensor, keys: Tensor, capacity: int, grid: Grid | None) -> Tensor:
        """Return the positions to keep, (R, N, capacity) int64, ascending.

        The observers are kept, and the best of the others; of equals the earlier. With less room
        than the window takes, there are as many observers as the largest square that fits.

        Args:
            q: (R, N, L, d) queries of the last group, scaled.
            keys: (R, N, S, d) of all positions.
            capacity: 1..S-1.
            grid: (h, w) of the last group; None if it does not fill one.
        """
        number = self.window if capacity >= self.window else isqrt(capacity) ** 2
        window = observers(grid, keys.shape[2], number, keys.device)
        scores = self.scores(q, keys, window)
        # A stable sort, not `topk`: pooling makes equals, and which of them is taken must depend
        # neither on the batch nor on the device.
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., : capacity - len(window)]
        kept = torch.cat([best, window.expand(*best.shape[:2], -1)], dim=-1)
        return kept.sort(dim=-1).values

    def scores(self, q: Tensor, keys: Tensor, window: Tensor) -> Tensor:
        """Return the pooled scores (R, N, S), float32; -inf at the observers, `window` (W,)."""
        # Observers further back than the last group look with its first query.
        mine = (window - (keys.shape[2] - q.shape[2])).clamp(min=0)
        q, keys = q.index_select(2, mine).float(), keys.float()
        if self.score == "logits":
            votes = (q.sum(dim=2, keepdim=True) @ keys.mT)[:, :, 0]  # the sum is that of all logits
        else:
            votes = (q @ keys.mT).softmax(dim=-1).sum(dim=2)
        votes = votes.index_fill(-1, window, -torch.inf)
        pool = _POOLS[self.pool]
        pooled = pool(votes.flatten(0, 1), self.width, stride=1, padding=self.width // 2)
        # What a mean brings down to -inf must still come before the observers.
        pooled = pooled.clamp(min=torch.finfo(pooled.dtype).min).view_as(votes)
        return pooled.index_fill(-1, window, -torch.inf)


def observers(grid: Grid | None, length: int, number: int, device: torch.device) -> Tensor:
    """Return the positions of observers in a cache of so many positions, ascending, int64.

    The centres of the last group's patches, or the latest positions where it has none.

    >>> observers((4, 4), 20, 4, torch.device("cpu")).tolist()
    [4, 6, 12, 14]
    """
    inside = None if grid is None else _centres(grid, number, device)
    if grid is None or inside is None or grid[0] * grid[1] > length:
        return torch.arange(max(0, length - number), length, device=device)
    return inside + (length - grid[0] * grid[1])


# Asked for at every layer and step: computed once per device, and outside inference mode, so that
# a tensor first used while sampling can be used anywhere later.
@lru_cache(maxsize=256)
def _centres(grid: Grid, number: int, device: torch.device) -> Tensor | None:
    """Return the row-major cells in the middle of g x g patches, g² = number; None if not so."""
    (h, w), g = grid, isqrt(number)
    if g * g != number or min(h, w) < g:
        return None
    rows, columns = ([i * (n // g) + (n // g - 1) // 2 for i in range(g)] for n in (h, w))
    with torch.inference_mode(False):
        return torch.tensor([row * w + column for row in rows for column in columns], device=device)
