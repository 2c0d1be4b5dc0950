"""One request for images: what is wanted, how far it is, and what there is to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import var
from var import choices
from var.app.controls import Setting
from var.condition import Condition
from var.decoding.loop import decide
from var.devices import precision_name
from var.editing import Edit
from var.errors import UserError
from var.pipeline import Pipeline
from var.pixels import to_uint8
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.tokenizer import Canvas


@dataclass(frozen=True)
class Wanted:
    """Which images are drawn.

    Attributes:
        labels: class ids, -1 for none.
        number: images of each.
        seed: random stream of the first; image i has `seed + i`.
        edit: what they begin with.
        edited: the same in words, for whoever reads the settings of an image.
    """

    labels: Sequence[int]
    number: int
    seed: int
    edit: Edit | None = None
    edited: Any = None

    @property
    def ids(self) -> list[int]:
        """Class id of each image."""
        return [label for label in self.labels for _ in range(self.number)]


@dataclass(frozen=True)
class Drawn:
    """Images as far as they are drawn.

    Attributes:
        frames: what was shown so far, the latest last: (B, 3, H, W) uint8 each.
        done, groups: how many groups are decided, of how many.
        turns: passes of models so far.
        seconds: that drawing took so far; what was shown on the way does not count, the last does.
        cold: whether nothing of this kind was drawn before by this model, so that it took longer.
        notes: what it takes to draw them again, as `var-sample` says it.
        width: groups in a row of a raster; 1 where a group is a scale.
        stopped: whether no more will follow, though not all are decided.
    """

    frames: tuple[Tensor, ...]
    done: int
    groups: int
    turns: int
    seconds: float
    cold: bool
    notes: dict[str, Any]
    width: int = 1
    stopped: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to decide."""
        return self.done == self.groups

    @property
    def line(self) -> str:
        """How far it is, or how long it took, in words."""
        if not self.finished:
            unit = "scales" if self.width == 1 else "rows"
            far = f"{self.done // self.width} of {self.groups // self.width} {unit}"
            return f"stopped after {far}" if self.stopped else f"{far} …"
        count = len(self.frames[-1])
        each = f", {self.seconds / count:.3f} s each" if count > 1 else ""
        cold = " · the first of its kind: the next one will be faster" if self.cold else ""
        images = f"{count} image{'s' if count > 1 else ''}"
        return f"{images} in {self.seconds:.3f} s{each} · {self.turns} passes{cold}"

    def note(self, index: int) -> dict[str, Any]:
        """Return what it takes to draw one of the images again."""
        labels, number = self.notes["labels"], self.notes["number"]
        alone = {k: v for k, v in self.notes.items() if k != "number"}
        return {**alone, "labels": [labels[index // number]], "seed": alone["seed"] + index}


class Job:
    """One request under way.

    Raises:
        UserError: a value makes no sense.
    """

    def __init__(self, pipe: Pipeline, setting: Setting, wanted: Wanted) -> None:
        self.pipe, self.setting, self.wanted = pipe, setting, wanted
        self.condition = Condition(torch.tensor(pipe.ids(wanted.ids))).to(pipe.device)
        self.tokenizer = choices.edited(pipe, wanted.edit)
        try:
            self.sampling = pipe.settings(**setting.sampling)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.decoding = choices.decoding(pipe, setting.decoding)
        sizes = f"{len(self.condition)} x {self.sampling.rows}"
        self.kind = f"{setting.decoding} {setting.cache} {sizes} {wanted.edit is not None}"
        self.canvas: Canvas | None = None
        self._before = 0
        self._canvases = decide(
            self.tokenizer,
            pipe.schedule,
            self.condition,
            self.decoding,
            self.sampling,
            Rng.batch(wanted.seed, len(self.condition), pipe.device),
            cache=choices.cache(pipe, setting.cache),
        )

    @property
    def done(self) -> int:
        """How many groups are decided."""
        return 0 if self.canvas is None else self.canvas.done

    @property
    def shows(self) -> bool:
        """Whether the latest turn has ended a scale, or a row of a raster."""
        rows = rows_of(self.pipe.schedule, self.done)
        return rows > rows_of(self.pipe.schedule, self._before)

    def turn(self) -> None:
        """Decide the next groups."""
        self._before, self.canvas = self.done, next(self._canvases)

    def image(self) -> Tensor:
        """Return the images as far as they are, (B, 3, H, W) uint8."""
        assert self.canvas is not None
        return to_uint8(self.tokenizer.decode(self.canvas)).cpu()

    def notes(self) -> dict[str, Any]:
        """Return what it takes to draw the images again."""
        return {
            "version": var.__version__,
            "model": self.setting.model,
            "sampling": self.sampling.heeded(self.pipe.model.head.heeds),
            "precision": precision_name(self.pipe.dtype),
            "decoding": dict(self.setting.decoding),
            "cache": dict(self.setting.cache),
            "edit": self.wanted.edited or {"name": "none"},
            "labels": list(self.wanted.labels),
            "number": self.wanted.number,
            "seed": self.wanted.seed,
        }


def rows_of(schedule: Schedule, done: int) -> int:
    """Return how many rows of a raster are decided, or how many scales."""
    return done // width_of(schedule)


def width_of(schedule: Schedule) -> int:
    """Return how many groups are a row of a raster; 1 for scales."""
    return schedule.grids[-1][1] if schedule.is_raster else 1
