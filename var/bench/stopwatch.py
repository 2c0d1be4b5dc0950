"""Times of the stages of a run, taken from outside: proxies around the pieces, none in the loop.

A proxy answers the contract of its piece (`Tokenizer`, `Canvas`, `Decoding`, `Backbone`, `Head`,
`Prediction`), hands everything on to the piece itself, and notes how long that took.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Self

import torch
from torch import Tensor, nn

from var.cache.base import Cache, CacheKind, nbytes
from var.condition import Condition
from var.decoding.base import Decoding, Turn
from var.heads.base import Head, Prediction
from var.models.base import Backbone
from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Schedule, Span
from var.tokenizers.around import Wrapped
from var.tokenizers.canvas import Around
from var.tokenizers.tokenizer import Canvas, Tokenizer

STAGES = ("backbone", "head", "canvas", "decode")

Clock = Callable[[], float]


def finisher(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done all that it was told to do."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


class Stopwatch:
    """Notes what one run of a decoding took, held and drew.

    Args:
        clock: seconds since whenever.
        finish: called before the clock is read: waits for what runs asynchronously.

    Attributes:
        group: how many groups were decided when the current turn began.
        laps: seconds of each stage at each group, (stage, group).
        tokens: what was settled, group by group.
        held: most bytes that the caches held after a turn, by `group`.
        calls: number of turns, each of them one pass of a model.
    """

    def __init__(
        self, clock: Clock = perf_counter, finish: Callable[[], None] = lambda: None
    ) -> None:
        self.clock, self.finish = clock, finish
        self.group = 0
        self.laps: dict[tuple[str, int], float] = defaultdict(float)
        self.tokens: list[Tensor] = []
        self.held: dict[int, int] = {}
        self.calls = 0

    @property
    def cached(self) -> int:
        """Most bytes that the caches held after any turn."""
        return max(self.held.values(), default=0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that is spent inside to a stage of the current turn."""
        self.finish()
        start = self.clock()
        yield
        self.finish()
        self.laps[name, self.group] += self.clock() - start

    def total(self, stage: str) -> float:
        """Return the seconds of a stage, all groups together."""
        return sum(seconds for (name, _), seconds in self.laps.items() if name == stage)


@dataclass(frozen=True, eq=False)
class WatchedCanvas(Around):
    """A canvas whose reading and writing is timed.

    Attributes:
        canvas: the canvas.
        watch: what notes the times.
    """

    watch: Stopwatch

    def read(self, span: Span) -> Tensor:
        """Return what the canvas shows of a span."""
        with self.watch.stage("canvas"):
            return self.canvas.read(span)

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas with the next groups decided."""
        with self.watch.stage("canvas"):
            return replace(self, canvas=self.canvas.write(*tokens))


class WatchedTokenizer(Wrapped):
    """A tokenizer whose canvases are watched, and whose decoding to pixels is timed."""

    def __init__(self, tokenizer: Tokenizer, watch: Stopwatch) -> None:
        super().__init__(tokenizer)
        self._watch = watch

    def blank(self, batch: int, schedule: Schedule) -> WatchedCanvas:
        """Return a canvas on which nothing is decided."""
        return WatchedCanvas(super().blank(batch, schedule), self._watch)

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image of what is decided."""
        inner = canvas.canvas if isinstance(canvas, WatchedCanvas) else canvas
        with self._watch.stage("decode"):
            return super().decode(inner)


class WatchedPrediction:
    """A prediction whose filtering is timed; what comes out of it is watched no more."""

    def __init__(self, prediction: Prediction, watch: Stopwatch) -> None:
        self._inner, self._watch = prediction, watch

    def shaped(self, sampling: Sampling) -> Prediction:
        """Return the prediction after the filters."""
        with self._watch.stage("head"):
            return self._inner.shaped(sampling)

    def sample(self, rng: Rng | None = None) -> Tensor:
        """Draw tokens."""
        return self._inner.sample(rng)


class WatchedHead:
    """A head whose predictions are timed."""

    def __init__(self, head: Head, watch: Stopwatch) -> None:
        self._inner, self._watch = head, watch
        self.heeds = head.heeds

    def __call__(self, h: Tensor, span: Span, guide: Guide) -> WatchedPrediction:
        with self._watch.stage("head"):
            return WatchedPrediction(self._inner(h, span, guide), self._watch)

    def check(self, sampling: Sampling) -> None:
        """Check what the head checks."""
        self._inner.check(sampling)

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the loss of each position."""
        return self._inner.loss(h, tokens, span, rng)


class WatchedBackbone:
    """A backbone that is timed, and whose head is."""

    def __init__(self, model: Backbone, watch: Stopwatch) -> None:
        self._inner, self._watch = model, watch
        self.head = WatchedHead(model.head, watch)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The blocks of the model."""
        return self._inner.blocks

    def __call__(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        with self._watch.stage("backbone"):
            return self._inner(x, span, condition, cache)

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache."""
        return self._inner.new_cache(kind, groups)


class WatchedDecoding:
    """A decoding whose readers are watched, and whose tokens are noted.

    To draw tokens is part of the head's stage.
    """

    def __init__(self, decoding: Decoding, watch: Stopwatch) -> None:
        self._inner, self._watch = decoding, watch

    @property
    def resumes(self) -> bool:
        """Whether images that it takes up in the middle become what they would have been."""
        return self._inner.resumes

    @property
    def caches(self) -> Sequence[Cache]:
        """What is remembered now."""
        return self._inner.caches

    def begin(self, kind: CacheKind | None = None) -> None:
        """Forget the last run."""
        self._inner.begin(kind)

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the next turn, its reader watched."""
        self._watch.group = canvas.done
        self._watch.calls += 1
        turn = self._inner.propose(canvas, rng)
        return turn._replace(model=WatchedBackbone(turn.model, self._watch))

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Return the tokens of the next group or groups."""
        with self._watch.stage("head"):
            tokens = self._inner.settle(prediction, rng)
        self._watch.tokens += tokens
        held = self._watch.held.get(self._watch.group, 0)
        self._watch.held[self._watch.group] = max(held, nbytes(*self._inner.caches))
        return tokens
