"""A decoding whose turns are counted, each of which is one pass of a model, or what they read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from var.cache.base import Cache, CacheKind
from var.decoding.base import Decoding, Turn
from var.heads.base import Prediction
from var.random import Rng
from var.sampling import Sampling
from var.tokenizers.tokenizer import Canvas


class Counted:
    """A decoding that does what another one does.

    Args:
        decoding: the other one.

    Attributes:
        runs: number of turns of each run so far.
    """

    def __init__(self, decoding: Decoding) -> None:
        self.decoding, self.runs = decoding, list[int]()

    @property
    def resumes(self) -> bool:
        """Whether images that it takes up in the middle become what they would have been."""
        return self.decoding.resumes

    @property
    def caches(self) -> Sequence[Cache]:
        """What is remembered now."""
        return self.decoding.caches

    def begin(self, kind: CacheKind | None = None) -> None:
        """Forget the last run, but not its turns."""
        self.runs.append(0)
        self.decoding.begin(kind)

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the next turn."""
        self.runs[-1] += 1
        return self.decoding.propose(canvas, rng)

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Return the tokens of the next group or groups."""
        return self.decoding.settle(prediction, rng)


class Metered(Counted):
    """A decoding of which is counted what its models read.

    Args:
        decoding: the other one.
        sampling: tells how many rows of a model an image takes.

    Attributes:
        positions: that were read for each image so far, in all of its rows.
    """

    def __init__(self, decoding: Decoding, sampling: Sampling) -> None:
        super().__init__(decoding)
        self.sampling, self.positions = sampling, 0

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the next turn."""
        turn = super().propose(canvas, rng)
        span = canvas.schedule[turn.cache.seen : turn.draft.done + 1]
        self.positions += len(span) * self.sampling.guide_over(span.tail(canvas.done)).rows
        return turn
