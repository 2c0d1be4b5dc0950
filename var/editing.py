"""What edits are: which part of a given image stays, and how what is made joins it.

`var.edits` makes them of what users say.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from var.data.picture import Size, fitted, resized
from var.errors import UserError
from var.schedule import Grid, Schedule
from var.tokenizers.around import Edited
from var.tokenizers.canvas import keep_masks
from var.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Frame(NamedTuple):
    """The images of a model: cells (h, w) on the finest grid, and pixels on a side of a cell."""

    grid: Grid
    side: int

    @property
    def size(self) -> Size:
        """(H, W) in pixels."""
        return self.grid[0] * self.side, self.grid[1] * self.side


def whole(name: str, value: Any) -> int:
    """Return a setting of an edit that is a whole number, NumPy's as well.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, bool):
        with suppress(TypeError):
            return index(value)
    raise UserError(f"edit.{name}={value}: use a whole number")


class Edit(ABC):
    """What stays of an image; given a model, a tokenizer whose canvases begin with that."""

    @abstractmethod
    def around(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer with which images are made.

        Raises:
            UserError: this edit is not for images of this schedule.
        """


@dataclass(frozen=True, eq=False)
class Variation(Edit):
    """The first groups stay: coarse scales, or the first cells of a raster.

    Attributes:
        image: (3, H, W) in [0, 1], of any size.
        groups: how many.
    """

    image: Tensor
    groups: int

    def around(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer with which images are made, see `Edit`."""
        if not 0 <= self.groups <= len(schedule):
            count = len(schedule)
            raise UserError(f"edit.groups={self.groups}: this model has {count}, use 0..{count}")
        keep = [torch.full((size,), k < self.groups) for k, size in enumerate(schedule.sizes)]
        frame = Frame(schedule.grids[-1], tokenizer.factor)
        return Edited(tokenizer, fitted(self.image, frame.size), keep)


@dataclass(frozen=True, eq=False)
class Join:
    """How what is made joins what stays.

    Attributes:
        blend: `tokens`: the image's tokens stay (VAR, section 4); what is drawn may reach into its
            part a little. `latent`: its latents do, scale by scale (CoDe, section 4).
        paste: put the image's own pixels back in the end, where it stays.
        soft: pixels over which they fade into what was made, inside of it.

    Raises:
        UserError: a value makes no sense.
    """

    blend: str = "tokens"
    paste: bool = False
    soft: int = 0

    def __post_init__(self) -> None:
        if self.blend not in ("tokens", "latent"):
            raise UserError(f"edit.blend={self.blend}: use tokens or latent")
        if not isinstance(self.paste, bool):
            raise UserError(f"edit.paste={self.paste}: use true or false")
        if whole("soft", self.soft) < 0:
            raise UserError(f"edit.soft={self.soft}: use a whole number of pixels, 0 or more")
        if self.soft and not self.paste:
            raise UserError(f"edit.soft={self.soft} is the edge of pasted pixels: edit.paste=true")

    def share(self, hole: Tensor) -> Tensor | None:
        """Return the share of each pixel (H, W) that is made, for a hole (H, W) bool."""
        if not self.paste:
            return None
        eroded = [hole.float()[None]]
        for _ in range(self.soft):
            eroded.append(-F.max_pool2d(-eroded[-1], 3, stride=1, padding=1))
        return torch.cat(eroded).mean(dim=0)


@dataclass(frozen=True, eq=False)
class Painting(Edit):
    """A part of an image stays, the others are made.

    A cell is made anew if one of its pixels is.

    Attributes:
        image: (3, H, W) in [0, 1], of any size.
        join: how the parts join.
    """

    image: Tensor
    join: Join

    @abstractmethod
    def framed(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Return the image of a frame (3, H, W), and what is made anew of it (H, W) bool."""

    def around(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer with which images are made, see `Edit`."""
        frame = Frame(schedule.grids[-1], tokenizer.factor)
        image, hole = self.framed(frame)
        cells = F.max_pool2d(hole[None].float(), frame.side)[0]
        if hole.all():
            log.warning("the edit keeps nothing: images will be as they are without it")
        elif cells.all():
            raise UserError(
                f"nothing would stay: no cell of {frame.side} x {frame.side} pixels lies in what "
                "shall: let a larger area stay, or give a larger edit.scale"
            )
        if not hole.any():
            log.warning("the edit leaves nothing to make: images will be the given one")
        if (latent := self.join.blend == "latent") and schedule.is_raster:
            raise UserError(
                "edit.blend=latent amends scales, and this model decides single cells: "
                "use edit.blend=tokens"
            )
        keep = keep_masks(1 - cells, schedule)
        if cells.all():  # what is kept whole as published, scales of few cells, would be alone
            keep = [torch.zeros_like(stays) for stays in keep]
        return Edited(
            tokenizer,
            image,
            keep,
            hole=cells if latent else None,
            share=self.join.share(hole),
        )


@dataclass(frozen=True, eq=False)
class AreaPainting(Painting):
    """An area is made anew.

    Attributes:
        area: what is made anew of a frame, (H, W) bool.
    """

    area: Callable[[Frame], Tensor]

    def framed(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Return the image of a frame, and what is made anew of it, see `Painting`."""
        return fitted(self.image, frame.size), self.area(frame)


@dataclass(frozen=True, eq=False)
class Expansion(Painting):
    """What lies around a smaller image is made.

    Attributes:
        scale: share of the frame that the image may take, by height and by width.
        at: where it lies, down and across: 0 at the near edge, 1 at the far one.
    """

    scale: float
    at: tuple[float, float]

    def framed(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Return the image of a frame, and what is made anew of it, see `Painting`.

        The image lies on whole cells as far as its shape allows. Around it its border is carried
        on, for the encoder to see.
        """
        room = [max(1, round(self.scale * cells)) * frame.side for cells in frame.grid]
        old = self.image.shape[1:]
        ratio = min(room[0] / old[0], room[1] / old[1])
        high, wide = (max(1, round(ratio * edge)) for edge in old)
        spare = frame.size[0] - high, frame.size[1] - wide
        steps = [1 if gap % frame.side else frame.side for gap in spare]
        top, left = (
            round(at * gap / step) * step
            for at, gap, step in zip(self.at, spare, steps, strict=True)
        )
        small = resized(self.image, (high, wide))[None]
        around = (left, spare[1] - left, top, spare[0] - top)
        hole = torch.ones(frame.size, dtype=torch.bool)
        hole[top : top + high, left : left + wide] = False
        return F.pad(small, around, mode="replicate")[0], hole
