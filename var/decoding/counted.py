"""A decoding whose turns are counted: each is one pass of a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from var.cache.base import Cache, CacheKind
from var.decoding.base import Decoding, Turn
from var.heads.base import Prediction
from var.random import Rng
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
