"""Tokenizers around a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.canvas import Amendable, Framed, Kept, latents
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
    def factor(self) -> int:
        """Pixels on a side of a cell of the finest grid."""
        return self.tokenizer.factor

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


class Edited(Wrapped):
    """A tokenizer whose canvases begin with a given image, of which parts stay.

    The image is encoded once, when the first canvas is asked for.

    Args:
        tokenizer: the other one.
        image: (3, H, W) in [0, 1] of the size that the schedule's images have.
        keep: bool masks (L_k,), True where the image's tokens stay, one a group, see `Kept`.
        hole: (h, w) 1 where images are made: around it the image's latents stay, see `Framed`, and
            `keep` counts for nothing.
        share: (H, W) of the pixels that are decoded; the rest is the image's own. None: decoded.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image: Tensor,
        keep: Sequence[Tensor],
        *,
        hole: Tensor | None = None,
        share: Tensor | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.image, self.keep, self.hole, self.share = image, keep, hole, share
        self.source: list[Tensor] = []

    def blank(self, batch: int, schedule: Schedule) -> Canvas:
        """Return a canvas on which nothing is decided but what stays."""
        canvas = self.tokenizer.blank(batch, schedule)
        device = canvas.latent.device
        if not self.source:
            self.source = self._encoded(self.image[None].to(device), schedule)
        if self.hole is None:
            return Kept(canvas, self.source, [mask.to(device) for mask in self.keep])
        return Framed(cast(Amendable, canvas), self.source, self.hole.to(device))

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image of what is decided so far, the given one's pixels where they stay."""
        image = self.tokenizer.decode(canvas)
        if self.share is None:
            return image
        share = self.share.to(image)
        return image * share + self.image.to(image) * (1 - share)

    @torch.no_grad()
    def _encoded(self, image: Tensor, schedule: Schedule) -> list[Tensor]:
        tokens = self.tokenizer.encode(image, schedule)
        return tokens if self.hole is None else latents(self.tokenizer.blank(1, schedule), tokens)
