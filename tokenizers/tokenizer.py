"""The contracts of the tokenizers' floor: `Canvas` and `Tokenizer`.

Models, heads and decodings know tokenizers by these two protocols only. Letters: B images, K
groups, L positions of a span, C latent channels, V vocabulary, (h, w) the finest grid.
"""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor

from var.schedule import Schedule, Span


class Canvas(Protocol):
    """What has been decided of a batch of images so far.

    Immutable: `write` returns a new canvas, so that a guess costs nothing and undoing it means
    forgetting it. Tokens are ids (B, L) int64, mixtures of codes (B, L, V) float, or continuous
    values (B, L, C), whatever `Tokenizer.embed` understands.

    Attributes:
        schedule: the groups to decide.
        done: how many of them are decided.
        latent: (B, C, h, w) sum of what is decided, ready to be decoded.
    """

    @property
    def schedule(self) -> Schedule: ...
    @property
    def done(self) -> int: ...
    @property
    def latent(self) -> Tensor: ...

    def read(self, span: Span) -> Tensor:
        """Return what the model sees when it predicts the groups of `span`, (B, L, C)."""
        ...

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas on which the next groups are decided, one tensor a group."""
        ...


class Tokenizer(Protocol):
    """Pixels to tokens and back. Images are (B, 3, H, W) in [0, 1]."""

    def encode(self, image: Tensor, schedule: Schedule) -> list[Tensor]:
        """Return the tokens of each group, (B, L_k) ids or (B, L_k, C) values."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the latent vectors of tokens, (B, L, C)."""
        ...

    def blank(self, batch: int, schedule: Schedule) -> Canvas:
        """Return a canvas on which nothing is decided."""
        ...

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image of what is decided so far."""
        ...
