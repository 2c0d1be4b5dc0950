"""What tokenizers with a convolutional auto-encoder around a quantizer share."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.autoencoder import Decoder, Encoder, decoded, layout, minus_one_one
from var.tokenizers.residual import Quantised
from var.tokenizers.tokenizer import Canvas


class Convolutional(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to ids, and back.

    Args:
        quantizer: makes what maps latents (B, C, h, w) to ids and back.
        channels: latent channels C.
        inner: channels of the auto-encoder's own latent.
        kernel: of the convolutions between the two latents (published `quant_conv_ks`).
        encoder, decoder: leave a half out by passing False.
        shape: of the auto-encoder, see `var.tokenizers.autoencoder.Encoder`.
    """

    def __init__(
        self,
        quantizer: Callable[[], nn.Module],
        *,
        channels: int,
        inner: int,
        kernel: int,
        encoder: bool,
        decoder: bool,
        **shape: Any,
    ) -> None:
        super().__init__()
        padding = kernel // 2
        if encoder:
            self.encoder = Encoder(channels=inner, **shape)
            self.quant_conv = nn.Conv2d(inner, channels, kernel, padding=padding)
        if decoder:
            self.decoder = Decoder(channels=inner, **shape)
            self.post_quant_conv = nn.Conv2d(channels, inner, kernel, padding=padding)
        self.quantizer: Any = quantizer()
        self.factor = 2 ** (len(shape["multipliers"]) - 1)

    def features(self, image: Tensor) -> Tensor:
        """Return the continuous latent (B, C, h, w) of an image in [0, 1].

        Raises:
            ValueError: the image's sides are not multiples of the down-sampling factor.
        """
        if image.shape[-2] % self.factor or image.shape[-1] % self.factor:
            raise ValueError(
                f"image sides must be multiples of {self.factor}, got {tuple(image.shape[-2:])}"
            )
        image = image.to(self.quant_conv.weight.dtype)
        return self.quant_conv(self.encoder(minus_one_one(image)))

    def pixels(self, latent: Tensor) -> Tensor:
        """Return the decoder's image (B, 3, H, W) of a latent: around [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latent.to(self.post_quant_conv.weight.dtype)))

    @property
    def terms(self) -> dict[str, int]:
        """Number of codes and of latent channels."""
        vocabulary, channels = self.quantizer.codebook.weight.shape
        return {"vocabulary": vocabulary, "channels": channels}

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """What may be trained by itself, by name."""
        return {
            "encoder": [self.encoder, self.quant_conv],
            "quantizer": [self.quantizer],
            "decoder": [self.decoder, self.post_quant_conv],
        }

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        """Return the ids (B, L) of all groups of an image (B, 3, H, W) in [0, 1]."""
        return torch.cat(self.quantizer.quantise(self.features(image), schedule), dim=1)

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the ids (B, L_k) of each group of those of all groups (B, L)."""
        return list(code.long().split(schedule.sizes, dim=1))

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the ids (B, L_k) of each group of an image (B, 3, H, W) in [0, 1]."""
        return self.tokens(self.compress(image, schedule), schedule)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the code vectors (B, L, C) of tokens."""
        return self.quantizer.embed(tokens)

    def blank(self, batch: int, schedule: Schedule) -> Canvas:
        """Return a canvas on which nothing is written."""
        return self.quantizer.blank(batch, schedule)

    def decode(self, canvas: Canvas) -> Tensor:
        """Return the image (B, 3, H, W) float32 in [0, 1] of what is written so far."""
        return decoded(canvas.latent, self.pixels, self.factor)

    def fast(self, dtype: torch.dtype) -> Self:
        """Return the same tokenizer with a decoder for inference in `dtype`, laid out to be fast.

        Encoder and codes are shared, and stay in float32: which code is nearest, and what scales
        add up to, does not depend on how fast pixels are to be had.
        """
        twin = copy(self)
        twin._modules = dict(self._modules)
        if "decoder" in self._modules:
            form = layout(twin.decoder, dtype)
            for name in ("decoder", "post_quant_conv"):
                half = deepcopy(self._modules[name])
                setattr(twin, name, half.to(dtype=dtype, memory_format=form))
        return twin

    def forward(self, image: Tensor, schedule: Schedule) -> tuple[Tensor, Quantised]:
        """Reconstruct for training: image around [0, 1], not clamped, and what was quantised."""
        quantised = self.quantizer(self.features(image), schedule)
        return (self.pixels(quantised.latent) + 1) / 2, quantised
