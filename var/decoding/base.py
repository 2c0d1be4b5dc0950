"""The contract of decodings: who reads the canvas next, and what is kept of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from var.cache.base import Cache, CacheKind
from var.heads.base import Prediction
from var.models.base import Backbone
from var.random import Rng
from var.tokenizers.tokenizer import Canvas


class Turn(NamedTuple):
    """One reading of the canvas.

    Attributes:
        model: who reads.
        cache: what it has read before.
        draft: the canvas, perhaps with guesses written on it.
    """

    model: Backbone
    cache: Cache
    draft: Canvas


class Decoding(Protocol):
    """Chooses reader and guesses of each turn, and settles what is decided.

    Attributes:
        resumes: whether images that it takes up in the middle become what they would have been.
    """

    @property
    def resumes(self) -> bool: ...
    @property
    def caches(self) -> Sequence[Cache]:
        """What is remembered now, of all models: for whoever counts bytes."""
        ...

    def begin(self, kind: CacheKind | None = None) -> None:
        """Forget the last run: caches have seen nothing, guesses are gone.

        Args:
            kind: what makes the caches from now on; None: what did before.
        """
        ...

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the next turn; what is guessed may be drawn, with one stream per image."""
        ...

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Return the tokens of the next group or groups."""
        ...
