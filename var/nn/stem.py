"""The stem of a next-scale transformer: class, canvas and place to the residual stream.

Letters: R rows, L positions of a span, D width, C latent channels, K scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.nn.classes import Classes
from var.schedule import Schedule, Span


class Stem(nn.Module):
    """Class at scale 0, canvas at all others; plus level and position (section 3.3).

    Args:
        channels: of the latent, C.
        width: of the residual stream, D.
        classes: number of classes; the null class comes on top.
        schedule: the scales; levels and positions are learned for these only.
    """

    no_decay = ("start", "positions", "levels")
    per_position, per_group = ("start", "positions"), ("levels",)  # see `var.training.growth`

    def __init__(self, channels: int, width: int, *, classes: int, schedule: Schedule) -> None:
        super().__init__()
        self.first = schedule.sizes[0]
        self.linear = nn.Linear(channels, width)
        self.classes = Classes(classes, width)
        self.levels = nn.Parameter(torch.empty(len(schedule), width))
        self.start = nn.Parameter(torch.empty(schedule.sizes[0], width))
        self.positions = nn.Parameter(torch.empty(schedule.starts[-1], width))

    def forward(self, x: Tensor, span: Span, label: Tensor) -> Tensor:
        """Return the stream (R, L, D) at its source.

        Args:
            x: (R, L, C) what the canvas shows; what it holds for scale 0 is ignored.
            span: the scales that x belongs to.
            label: (R, D) embedding of the class, which stands in for x at scale 0.
        """
        first = self.first if span.start == 0 else 0
        start = label[:, None] + self.start[:first]
        rest = self.linear(x[:, first:].to(self.linear.weight.dtype))
        place = F.embedding(span.levels(x.device), self.levels) + self.positions[span.positions]
        return torch.cat([start.to(rest.dtype), rest], dim=1) + place
