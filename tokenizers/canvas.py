"""Canvases around canvases: what holds for every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from var.schedule import Schedule, Span
from var.tokenizers.tokenizer import Canvas


@dataclass(frozen=True, eq=False)
class Kept:
    """A canvas on which part of a given image stays: in- and out-painting (VAR, section 4).

    Attributes:
        canvas: where tokens are written.
        source: ids (B, L_k) of the given image, one tensor a group.
        keep: bool masks (L_k,) or (B, L_k), True where the source stays, one a group.
    """

    canvas: Canvas
    source: Sequence[Tensor]
    keep: Sequence[Tensor]

    @property
    def schedule(self) -> Schedule:
        """The groups to decide."""
        return self.canvas.schedule

    @property
    def done(self) -> int:
        """Groups decided."""
        return self.canvas.done

    @property
    def latent(self) -> Tensor:
        """(B, C, h, w) sum of what is decided."""
        return self.canvas.latent

    def read(self, span: Span) -> Tensor:
        """Return what the model sees for the groups of `span`, (B, L, C)."""
        return self.canvas.read(span)

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas with the next groups decided, the kept cells from the source."""
        canvas = self.canvas
        for group in tokens:
            canvas = canvas.write(self._mixed(group, canvas.done))
        return replace(self, canvas=canvas)

    def _mixed(self, tokens: Tensor, group: int) -> Tensor:
        keep, source = self.keep[group].expand(tokens.shape[:2]), self.source[group]
        if tokens.is_floating_point():
            source, keep = F.one_hot(source, tokens.shape[-1]).to(tokens), keep[..., None]
        return torch.where(keep, source, tokens)


def keep_masks(mask: Tensor, schedule: Schedule) -> list[Tensor]:
    """Return which cells (L_k,) of each scale stay, of a mask (h, w) on the finest grid (1: stays).

    A cell stays where the resized mask exceeds one half; scales of up to three cells stay whole
    (VAR, section 4).
    """
    masks = []
    for (h, w), size in zip(schedule.grids, schedule.sizes, strict=True):
        resized = F.interpolate(mask[None, None].float(), (h, w), mode="bilinear")[0, 0] > 0.5
        masks.append(torch.ones_like(resized).flatten() if size <= 3 else resized.flatten())
    return masks
