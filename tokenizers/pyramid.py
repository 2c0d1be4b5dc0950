"""The canvas of scales: one latent on the finest grid, which every scale that is written changes.

What the scales do to it is what kinds of pyramid differ in; what the next scale sees of it is the
same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from var.schedule import Schedule, Span


@dataclass(frozen=True, eq=False)
class Pyramid(ABC):
    """A latent that scales are written to.

    Attributes:
        schedule: the scales.
        done: scales written.
        latent: (B, C, h, w) float32 what they amount to, on the last scale's grid.
        views: (B, L_k, C) the latent resized to scale k, before scale k was written; k = 0..done.
    """

    schedule: Schedule
    done: int
    latent: Tensor
    views: tuple[Tensor, ...]

    def read(self, span: Span) -> Tensor:
        """Return what the coarser scales amount to, resized to each scale of `span`, (B, L, C)."""
        if span.stop > len(self.views):
            raise ValueError(
                f"scale {span.stop - 1} cannot be read: only {self.done} scales are written"
            )
        return torch.cat(self.views[span.start : span.stop], dim=1)

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas with the next scales written, one tensor of tokens a scale."""
        canvas = self
        for group in tokens:
            latent = canvas._with(group)
            canvas = replace(canvas, done=canvas.done + 1).amended(latent)
        return canvas

    def amended(self, latent: Tensor) -> Self:
        """Return the canvas with another latent (B, C, h, w), and the next scale's view of it."""
        views = self.views[: self.done]
        if self.done < len(self.schedule):
            view = F.interpolate(latent, self.schedule.grids[self.done], mode="area")
            views = (*views, rearrange(view, "B C h w -> B (h w) C"))
        return replace(self, latent=latent, views=views)

    def rows(self, index: Tensor) -> Self:
        """Return the canvas of some of the images, those of `index` (b,) int64."""
        views = tuple(view[index] for view in self.views)
        return replace(self, latent=self.latent[index], views=views)

    def joined(self, *others: Self) -> Self:
        """Return the canvas of these images and those of others that are as far."""
        every = (self, *others)
        views = tuple(map(torch.cat, zip(*(each.views for each in every), strict=True)))
        return replace(self, latent=torch.cat([each.latent for each in every]), views=views)

    @abstractmethod
    def _with(self, tokens: Tensor) -> Tensor:
        """Return the latent once the next scale is written."""
