"""Canvases around canvases: what holds for every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from var.schedule import Schedule, Span
from var.tokenizers.tokenizer import Canvas


@dataclass(frozen=True, eq=False)
class Around:
    """What canvases around a canvas share: they show what it shows.

    Attributes:
        canvas: where tokens are written.
    """

    canvas: Canvas

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

    def rows(self, index: Tensor) -> Self:
        """Return the canvas of some of the images, those of `index` (b,) int64."""
        return replace(self, canvas=self.canvas.rows(index))

    def joined(self, *others: Self) -> Self:
        """Return the canvas of these images and those of others, of the same edit and as far."""
        canvas = self.canvas.joined(*(each.canvas for each in others))
        return replace(self, canvas=canvas, **self._parts((self, *others)))

    @staticmethod
    def _parts(every: Sequence[Any]) -> dict[str, Any]:
        """Return, of several canvases joined, what there is beside their own canvas."""
        return {}


@dataclass(frozen=True, eq=False)
class Kept(Around):
    """A canvas on which part of a given image stays: in- and out-painting (VAR, section 4).

    The image's tokens take the place of those that are drawn; what is drawn may still reach into
    its part, as far as an upsampled token does.

    Attributes:
        canvas: where tokens are written.
        source: tokens of the given image, one tensor a group: ids (B, L_k) or values (B, L_k, C);
            or of one image for all rows, (1, L_k, ...).
        keep: bool masks (L_k,) or (B, L_k), True where the source stays, one a group.
    """

    source: Sequence[Tensor]
    keep: Sequence[Tensor]

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas with the next groups decided, the kept cells from the source."""
        canvas = self.canvas
        for group in tokens:
            canvas = canvas.write(self._mixed(group, canvas.done))
        return replace(self, canvas=canvas)

    def rows(self, index: Tensor) -> Self:
        """Return the canvas of some of the images, those of `index` (b,) int64."""
        source = [_rows(group, index) for group in self.source]
        keep = [mask if mask.ndim == 1 else _rows(mask, index) for mask in self.keep]
        return replace(super().rows(index), source=source, keep=keep)

    @staticmethod
    def _parts(every: Sequence[Any]) -> dict[str, Any]:
        masks = zip(*(each.keep for each in every), strict=True)
        return {
            "source": [_joined(g) for g in zip(*(each.source for each in every), strict=True)],
            "keep": [group[0] if group[0].ndim == 1 else _joined(group) for group in masks],
        }

    def _mixed(self, tokens: Tensor, group: int) -> Tensor:
        keep, source = self.keep[group].expand(tokens.shape[:2]), self.source[group]
        if tokens.ndim > source.ndim:  # mixtures of codes
            source = F.one_hot(source, tokens.shape[-1])
        if tokens.ndim > 2:
            keep = keep[..., None]
        return torch.where(keep, source.to(tokens), tokens)


class Amendable(Canvas, Protocol):
    """A canvas whose latent can be changed by hand."""

    def amended(self, latent: Tensor) -> Self:
        """Return the canvas with another latent, which the next group is to see."""
        ...


@dataclass(frozen=True, eq=False)
class Framed(Around):
    """A canvas that shows a given image around a hole: in-painting (CoDe, section 4).

    After each group the latent outside the hole becomes that of the given image after as many
    groups, so that nothing that is drawn reaches into it. Any tokens may be written, mixtures too.

    Attributes:
        canvas: where tokens are written.
        source: latents (B, C, h, w) of the given image after each group, see `latents`; or of one
            image for all rows, (1, C, h, w).
        hole: (h, w) or (B, 1, h, w) on the finest grid, 1 where images are made, 0 where the source
            stays; shares in between mix the two. See `hole_mask`.
    """

    canvas: Amendable
    source: Sequence[Tensor]
    hole: Tensor

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas with the next groups decided, the source around the hole."""
        canvas = self.canvas
        for group in tokens:
            source, canvas = self.source[canvas.done], canvas.write(group)
            hole = self.hole.to(canvas.latent)
            canvas = canvas.amended(canvas.latent * hole + source * (1 - hole))
        return replace(self, canvas=canvas)

    def rows(self, index: Tensor) -> Self:
        """Return the canvas of some of the images, those of `index` (b,) int64."""
        source = [_rows(latent, index) for latent in self.source]
        hole = self.hole if self.hole.ndim == 2 else _rows(self.hole, index)
        return replace(super().rows(index), source=source, hole=hole)

    @staticmethod
    def _parts(every: Sequence[Any]) -> dict[str, Any]:
        holes = [each.hole for each in every]
        return {
            "source": [_joined(g) for g in zip(*(each.source for each in every), strict=True)],
            "hole": holes[0] if holes[0].ndim == 2 else _joined(holes),
        }


def latents(canvas: Canvas, tokens: Sequence[Tensor]) -> list[Tensor]:
    """Return the latent (B, C, h, w) after each group of tokens written on a blank canvas."""
    found = []
    for group in tokens:
        canvas = canvas.write(group)
        found.append(canvas.latent)
    return found


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor if len(tensor) == 1 else tensor[index]  # one for all rows stays one


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]  # the very same for all of them: one for all rows stays one
    return first if all(each is first for each in tensors) else torch.cat(list(tensors))


def hole_mask(mask: Tensor, schedule: Schedule) -> Tensor:
    """Return a mask (B, 1, H, W) of any size on the finest grid, (B, 1, h, w): the nearest pixel.

    The original resizes so (CoDe, section 4).
    """
    return F.interpolate(mask.float(), schedule.grids[-1], mode="nearest")


def keep_masks(mask: Tensor, schedule: Schedule) -> list[Tensor]:
    """Return which cells (L_k,) of each group stay, of a mask (h, w) on the finest grid (1: stays).

    A cell stays where the resized mask exceeds one half; scales of up to three cells stay whole
    (VAR, section 4), even where nothing else does.
    """
    masks = []
    for grid, cells in zip(schedule.grids, schedule.cells, strict=True):
        resized = F.interpolate(mask[None, None].float(), grid, mode="bilinear")
        stays = resized.flatten() > 0.5
        if cells is not None:
            stays = stays[list(cells)]
        elif len(stays) <= 3:
            stays = torch.ones_like(stays)
        masks.append(stays)
    return masks
