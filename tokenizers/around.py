"""Tokenizers around a tokenizer."""

from __future__ import annotations

from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.tokenizer import Canvas, Tokenizer


class Wrapped(nn.Module):
    """A tokenizer that does what another one does.

    Args:
        tokenizer: the other one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def any_schedule(self) -> bool:
        """Whether it serves every schedule."""
        return self.tokenizer.any_schedule

    @property
    def terms(self) -> dict[str, int]:
        """What a generator must know of the tokens."""
        return self.tokenizer.terms

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        """Return all that `tokens` needs of images."""
        return self.tokenizer.compress(image, schedule)

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the tokens of each group of what is kept."""
        return self.tokenizer.tokens(code, schedule, rng)

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the tokens of each group of images."""
        return self.tokens(self.compress(image, schedule), schedule, rng)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the latent vectors of tokens."""
        return self.tokenizer.embed(tokens)

    def blank(self, batch: int, schedule: Schedule) -> Canvas:
        """Return a canvas on which nothing is decided."""
        return self.tokenizer.blank(batch, schedule)

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image of what is decided so far."""
        return self.tokenizer.decode(canvas)


class Precompressed(Wrapped):
    """A tokenizer whose images are compressed already: for training on a cache of `var-encode`."""

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        """Return what is given, (B, ...): it is all that `tokens` needs."""
        return image
