"""A continuous tokenizer in a few lines: a small picture, and noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule


class Drawing(nn.Module):
    """Codes are images shrunk to the finest grid, times `weight`; tokens are drawn around them.

    Args:
        weight: 1: codes are in [0, 1].
    """

    any_schedule = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.compressed = 0  # images

    @property
    def terms(self) -> dict[str, int]:
        return {"channels": 3}

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        self.compressed += len(image)
        return F.interpolate(image, schedule.grids[-1], mode="area") * self.weight

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        if rng is not None:
            code = code + rng.normal(*code.shape[1:])
        maps = [F.interpolate(code, grid, mode="area") for grid in schedule.grids]
        return [each.flatten(2).transpose(1, 2) for each in maps]

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        return self.tokens(self.compress(image, schedule), schedule, rng)
