"""The canvas of scales that replace each other: each is the whole image at its size.

Its tokens are not residues: a scale's tokens are the image's latent, shrunk to the scale's grid,
and the next scale sees them enlarged (FlowAR, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from var.schedule import Schedule
from var.tokenizers.pyramid import Pyramid


@dataclass(frozen=True, eq=False)
class Resample(Pyramid):
    """A canvas on which every scale takes the place of the one before.

    The latent is the newest scale, enlarged to the finest grid (bicubic); a view of it is shrunk to
    the next scale's grid by averaging.

    Attributes:
        embed: tokens of a scale to latent vectors (B, L_k, C).
    """

    embed: Callable[[Tensor], Tensor]

    def _with(self, tokens: Tensor) -> Tensor:
        (h, w), size = self.schedule.grids[self.done], self.schedule.grids[-1]
        vectors = rearrange(self.embed(tokens), "B (h w) C -> B C h w", h=h, w=w)
        return vectors if (h, w) == size else F.interpolate(vectors, size, mode="bicubic")


def shrunk(latent: Tensor, schedule: Schedule) -> list[Tensor]:
    """Return a latent (B, C, h, w) averaged to each scale's grid, as vectors (B, L_k, C).

    Raises:
        ValueError: it is on another grid than the schedule's last.
    """
    if tuple(latent.shape[-2:]) != schedule.grids[-1]:
        raise ValueError(
            f"the latent grid is {tuple(latent.shape[-2:])}, "
            f"the schedule ends on {schedule.grids[-1]}"
        )
    maps = [F.interpolate(latent, grid, mode="area") for grid in schedule.grids]
    return [rearrange(each, "B C h w -> B (h w) C") for each in maps]
