"""What the page does with pipelines: settings in; images, times and PNGs out. Knows no browser.

Requests may come from several threads. They take turns group by group, so that one that nobody
waits for any more stops there; models, and the device, are never used by two at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from var.app.controls import Controls, Setting, controls
from var.app.job import Drawn, Job, Wanted, rows_of, width_of
from var.app.shelf import Shelf
from var.bench.stopwatch import finisher
from var.data.picture import fitted
from var.devices import is_out_of_memory
from var.editing import Frame
from var.errors import UserError
from var.pipeline import Pipeline
from var.pixels import to_uint8

T = TypeVar("T")
Stopped = Callable[[], bool]


def never() -> bool:
    """Return that nobody has asked to stop."""
    return False


@dataclass(frozen=True)
class Compared:
    """What two settings draw, as far as it is there; times count when it is finished.

    It never will be if it was stopped.
    """

    a: Drawn | None
    b: Drawn | None
    finished: bool = False
    stopped: bool = False

    @property
    def line(self) -> str:
        """Which one is faster, in words."""
        if not self.finished or self.a is None or self.b is None:
            return "stopped before the times were known" if self.stopped else "A and B take turns …"
        (less, faster), (more, slower) = sorted([(self.a.seconds, "A"), (self.b.seconds, "B")])
        same = self.a.frames[-1].equal(self.b.frames[-1])
        images = " · the same images, bit by bit" if same else ""
        ratio = f"{faster} is {more / less:.2f} times as fast as {slower}"
        return f"{ratio}, the better of two runs each{images}"


@dataclass(frozen=True)
class Again:
    """An image made again of its first groups.

    Attributes:
        grid: the finest one so far, or the rows that are there of a raster.
        image: (3, H, W) uint8.
        psnr: how near it is to the given one, in dB.
    """

    grid: tuple[int, int]
    image: Tensor
    psnr: float


class Service:
    """Answers what the page asks.

    Args:
        shelf: the models.
        most: images that one request may draw.
    """

    def __init__(self, shelf: Shelf, most: int = 16) -> None:
        self.shelf, self.most = shelf, most
        self._lock, self._finish = Lock(), finisher(shelf.device)
        self._warm: WeakKeyDictionary[Pipeline, set[str]] = WeakKeyDictionary()

    def controls(self, model: str) -> Controls:
        """Return the controls of a model, loading it if need be."""
        with self._alone():
            return controls(self.shelf.pipe(model), self.shelf.companions(model))

    def draw(
        self,
        setting: Setting,
        wanted: Wanted,
        stopped: Stopped = never,
        *,
        previews: bool = True,
    ) -> Iterator[Drawn]:
        """Yield the images after every group; of a raster, after every row.

        Args:
            setting: how.
            wanted: which.
            stopped: asked after every turn; if it says so, the images as they are come last.
            previews: without them there is nothing to see before the end.

        Raises:
            UserError: a value makes no sense, or memory does not suffice.
        """
        self._check(wanted)
        with self._alone():
            pipe = self.shelf.pipe(setting.model, setting.decoding.get("closer"))
            job, warm = Job(pipe, setting, wanted), self._warm.setdefault(pipe, set())
        frames, seconds, turns, groups = list[Tensor](), 0.0, 0, len(pipe.schedule)
        while job.done < groups:
            took, turns = self._timed(job.turn)[1], turns + 1
            seconds += took
            halt = job.done < groups and stopped()
            if not (job.shows or halt):
                continue
            last = 0.0
            if previews or job.done == groups:
                image, last = self._timed(job.image)
                frames.append(image)
            yield Drawn(
                frames=tuple(frames),
                done=job.done,
                groups=groups,
                turns=turns,
                seconds=seconds + last,
                cold=job.kind not in warm,
                notes=job.notes(),
                width=width_of(pipe.schedule),
                stopped=halt,
            )
            if halt:
                return
        warm.add(job.kind)

    def compare(
        self, a: Setting, b: Setting, wanted: Wanted, stopped: Stopped = never
    ) -> Iterator[Compared]:
        """Yield what two settings draw of the same seeds; also where nothing has changed.

        They take turns, twice, and the better time of each counts; one that is drawn for the first
        time is drawn once more before.

        Raises:
            UserError: see `draw`; or the models know different classes.
        """
        with self._alone():
            if self.shelf.pipe(a.model).classes != self.shelf.pipe(b.model).classes:
                raise UserError(f"{a.model} and {b.model} know different classes")
        best: list[Drawn | None] = [None, None]
        for side, setting in (0, a), (1, b), (0, a), (1, b):
            for drawn in self._warmed(setting, wanted, stopped):
                yield Compared(best[0], best[1], stopped=drawn.stopped)
                if drawn.stopped:
                    return
                before = best[side]
                if drawn.finished and (before is None or drawn.seconds < before.seconds):
                    best[side] = drawn
        yield Compared(best[0], best[1], finished=True)

    def reconstruct(self, model: str, picture: Tensor) -> tuple[Tensor, list[Again], float]:
        """Return an image as the model sees it, made again group by group, and the seconds of all.

        Args:
            model: its name; a tokenizer alone will do.
            picture: (3, H, W) in [0, 1], of any size.
        """
        with self._alone():
            pipe = self.shelf.pipe(model)

        def work() -> tuple[Tensor, list[Again]]:
            size = Frame(pipe.schedule.grids[-1], pipe.tokenizer.factor).size
            given = fitted(picture, size)[None].to(pipe.device)
            return to_uint8(given)[0].cpu(), list(_again(pipe, given))

        (given, steps), seconds = self._timed(work)
        return given, steps, seconds

    def _warmed(self, setting: Setting, wanted: Wanted, stopped: Stopped) -> Iterator[Drawn]:
        cold = False
        for drawn in self.draw(setting, wanted, stopped, previews=False):
            cold = drawn.cold
            if not (cold and drawn.finished):
                yield drawn
        if cold:
            yield from self.draw(setting, wanted, stopped, previews=False)

    def _check(self, wanted: Wanted) -> None:
        if not wanted.labels:
            raise UserError("choose a class, or no class")
        count = len(wanted.labels) * wanted.number
        if count < 1:
            raise UserError(f"{wanted.number} images of each class: draw 1 or more")
        if count > self.most:
            raise UserError(
                f"{count} images are more than the {self.most} that one request may draw: "
                "choose fewer classes, or fewer images of each"
            )
        if not 0 <= wanted.seed <= 2**63 - count:
            raise UserError(
                f"seed {wanted.seed}: choose one from 0 on, so that those of all images stay "
                "below 2**63"
            )

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        """Return the result of work, and its seconds."""
        with self._alone(), torch.inference_mode():
            self._finish()
            start = perf_counter()
            result = work()
            self._finish()
            return result, perf_counter() - start

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have models and device for oneself.

        Raises:
            UserError: memory does not suffice.
        """
        with self._lock:
            try:
                yield
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    "out of memory: draw fewer images, or choose a smaller model"
                ) from error


def _again(pipe: Pipeline, given: Tensor) -> Iterator[Again]:
    """Yield an image (1, 3, H, W) made again of more and more of its groups."""
    schedule, tokenizer = pipe.schedule, pipe.tokenizer
    canvas = tokenizer.blank(1, schedule)
    for group, tokens in enumerate(tokenizer.encode(given, schedule)):
        canvas = canvas.write(tokens)
        if rows_of(schedule, group + 1) == rows_of(schedule, group):
            continue
        image = tokenizer.decode(canvas).float()
        psnr = float(peak_signal_noise_ratio(image, given, (0.0, 1.0)))
        grid = schedule.grids[group]
        shown = (rows_of(schedule, group + 1), grid[1]) if schedule.is_raster else grid
        yield Again(shown, to_uint8(image)[0].cpu(), psnr)
