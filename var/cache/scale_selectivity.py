"""Calibration of compressed caches: which layers need the history, seen while images are sampled.

The attention selectivity index of ScaleKV (arXiv 2505.19602, section 3). What the paper leaves open
is chosen here: a factor of the index is a mean over queries, heads and rows, the indices are
compared within a group over layers, and group 0, without history, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from var.cache.base import Plain, check_keys
from var.cache.dense import DenseMemory
from var.schedule import Schedule, Span

_EPS = 1e-6


class ObservingMemory(DenseMemory):
    """A dense memory that measures, as it is extended, where its layer looks.

    Args:
        top: number of history positions, the most attended to, whose weights are summed.
        queries: at most so many of a group's queries are looked at, evenly spaced.

    Attributes:
        sums: of each group, the sums over all readings of its two factors (2,) and their number.
    """

    def __init__(self, top: int, queries: int) -> None:
        super().__init__()
        self._top, self._queries = top, queries
        self.sums: dict[int, tuple[Tensor, int]] = {}

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Return everything remembered, followed by `k` and `v`; measure the span's last group."""
        keys, values = super().extend(q, k, v, span)
        size, group = span.sizes[-1], span.stop - 1
        if group:
            step = -(-size // self._queries)
            found = factors(q[:, :, -size::step], keys, keys.shape[2] - size, self._top)
            before, count = self.sums.get(group, (torch.zeros_like(found), 0))
            self.sums[group] = before + found * len(q), count + len(q)
        return keys, values


class Observing(Plain):
    """A dense cache that measures attention; what it has measured outlives `rewind`.

    Args:
        layers: number of layers of the model.
        groups: of no interest here.
        top: see `ObservingMemory`, 1 or more.
        queries: likewise.
        recurrent: refused, there is no attention to what was read before.

    Raises:
        UserError: the model has no keys.
    """

    layers: Sequence[ObservingMemory]

    def __init__(
        self,
        layers: int,
        groups: int | None = None,
        *,
        top: int = 16,
        queries: int = 64,
        recurrent: bool = False,
    ) -> None:
        check_keys(recurrent, "calibration", "there is nothing to calibrate")
        super().__init__([ObservingMemory(top, queries) for _ in range(layers)])

    def index(self) -> Tensor:
        """Return the attention selectivity index of each layer in groups 1.., (layers, K - 1).

        Low means that a layer spreads its attention, over more history than a few positions.
        """
        rows = [
            torch.stack([(total / count).prod() for _, (total, count) in sorted(m.sums.items())])
            for m in self.layers
        ]
        return torch.stack(rows).cpu()


def factors(q: Tensor, keys: Tensor, history: int, top: int) -> Tensor:
    """Return mean weight on the own group, and on the `top` best of the history, (2,) float32.

    Args:
        q: (R, N, L, d) queries, scaled.
        keys: (R, N, S, d) of history and own group.
        history: number of positions before the group, 1 or more.
        top: 1 or more; more than there are means all.
    """
    weights = (q.float() @ keys.float().mT).softmax(dim=-1)
    best = weights[..., :history].topk(min(top, history), dim=-1).values
    return torch.stack([part.sum(dim=-1).mean() for part in (weights[..., history:], best)])


def choose_drafters(
    index: Tensor, schedule: Schedule, fraction: float, share: float
) -> list[tuple[int, int]]:
    """Return the (layer, group) pairs with the lowest index, as compared with other layers.

    Only groups before which a uniform budget has to drop something take part.

    Args:
        index: (layers, K - 1) of groups 1...
        schedule: the K groups.
        fraction: of the budget, see `Budget.shared`.
        share: of those pairs to return, 0..1; above 0 it is at least one.
    """
    deviation = index.std(dim=0, correction=0) + _EPS
    z = (index - index.mean(dim=0)) / deviation
    room = fraction * schedule.starts[-2]
    pairs = [
        (layer, group)
        for group in range(1, len(schedule))
        if schedule.starts[group] > room
        for layer in range(len(index))
    ]
    pairs.sort(key=lambda pair: float(z[pair[0], pair[1] - 1]))
    return pairs[: ceil(share * len(pairs))]
