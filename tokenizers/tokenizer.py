"""The contracts of the tokenizers' floor: `Canvas` and `Tokenizer`.

Models, heads and decodings know tokenizers by these two protocols only. Letters: B images, K
groups, L positions of a span, C latent channels, V vocabulary, (h, w) the finest grid.
"""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor

from var.random import Rng
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

    def rows(self, index: Tensor) -> Self:
        """Return the canvas of some of the images, those of `index` (b,) int64."""
        ...

    def joined(self, *others: Self) -> Self:
        """Return the canvas of these images and those of others of its kind that are as far."""
        ...


class Tokenizer(Protocol):
    """Pixels to tokens and back. Images are (B, 3, H, W) in [0, 1].

    Encoding has two halves: `compress`, whose result is worth keeping (a cache of a data set holds
    nothing else), and `tokens`, which is quick and, if the tokenizer is stochastic, draws.

    Attributes:
        any_schedule: whether it serves every schedule that ends on its grid, or only that which it
            was trained with.
        factor: pixels on a side of a cell of the finest grid.
    """

    @property
    def any_schedule(self) -> bool: ...
    @property
    def factor(self) -> int: ...
    @property
    def terms(self) -> dict[str, int]:
        """What a generator must know of the tokens: keywords of its constructor."""
        ...

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        """Return all that `tokens` needs of images, (B, ...)."""
        ...

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the tokens of each group, (B, L_k) ids or (B, L_k, C) values, of what is kept.

        Drawn with one stream per image if there is a choice; without streams the likeliest.
        """
        ...

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the tokens of each group of images: `compress`, then `tokens`."""
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
