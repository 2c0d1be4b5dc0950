"""The contracts of the heads' floor: `Prediction` and `Head`.

Letters: B images, R rows (B, or 2 B under guidance), L positions of a span, D width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Span


class Prediction(Protocol):
    """What is expected of the tokens of the open groups. Immutable."""

    def shaped(self, sampling: Sampling) -> Prediction:
        """Return the prediction after temperature, top-k and top-p of a single group."""
        ...

    def sample(self, rng: Rng | None = None) -> Tensor:
        """Draw tokens, one stream per image; without streams take the most likely ones."""
        ...


class Head(Protocol):
    """Turns features into predictions, and features and tokens into losses."""

    def __call__(self, h: Tensor, span: Span, guide: Guide) -> Prediction:
        """Return the prediction for the groups of `span` from features (R, L, D)."""
        ...

    def loss(self, h: Tensor, tokens: Tensor, span: Span) -> Tensor:
        """Return the loss of each position, (B, L) float32, of features (B, L, D)."""
        ...
