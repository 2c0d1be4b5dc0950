"""The contracts of the heads' floor: `Prediction` and `Head`.

Letters: B images, R rows (B, or 2 B under guidance), L positions of a span, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from var.errors import UserError
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
    """Turns features into predictions, and features and tokens into losses.

    Attributes:
        heeds: names of the sampling settings that its predictions follow; to set another one is an
            error of the user's.
    """

    heeds: frozenset[str]

    def __call__(self, h: Tensor, span: Span, guide: Guide) -> Prediction:
        """Return the prediction for the groups of `span` from features (R, L, D)."""
        ...

    def check(self, sampling: Sampling) -> None:
        """Check settings that are whole, before anything is drawn by them.

        Raises:
            UserError: there is nothing that they stand for.
        """
        ...

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the loss of each position, (B, L) float32, of features (B, L, D).

        Its mean is what is minimised. A head that trains on noise draws it from the images'
        streams.
        """
        ...


def check_settings(head: Head, given: Iterable[str], sampling: Sampling) -> None:
    """Check settings, and that those that were given by name mean something to a head.

    Raises:
        UserError: one does not; it is named, and so are those that do. Or see `Head.check`.
    """
    head.check(sampling)
    if odd := sorted(set(given) - head.heeds):
        raise UserError(
            f"{', '.join(odd)} would change nothing: this model heeds "
            f"{', '.join(sorted(head.heeds))}"
        )
