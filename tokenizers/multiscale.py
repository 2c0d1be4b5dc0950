"""The multi-scale VQ-VAE: convolutional auto-encoder and residual quantizer (VAR, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.autoencoder import Decoder, Encoder, decoded, layout, minus_one_one
from var.tokenizers.residual import MultiScaleQuantizer, Quantised, Residual
from var.tokenizers.tokenizer import Canvas


class MultiScaleVQ(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to one map of ids per scale, and back.

    The published tokenizer is `vocabulary=4096, channels=32, width=160,
    multipliers=(1, 1, 2, 2, 4), blocks=2, scales=10`.

    Args:
        vocabulary: number of codes V.
        channels: latent channels C.
        width: channels of the finest resolution of the auto-encoder.
        multipliers: channel factor per resolution, finest first; each further one halves the grid.
        blocks: residual blocks per resolution.
        scales: number of scales the quantizer is made for.
        kernel: of the convolutions before and after the quantizer (published `quant_conv_ks`).
        blend, sharing, normalised, commitment, standardise: see `MultiScaleQuantizer`.
        dropout: inside residual blocks.
        groups: of the auto-encoder's group norms.
        encoder, decoder: leave a half out by passing False (a decoder is all that sampling needs).
    """

    any_schedule = False  # Phis and statistics belong to scales

    def __init__(
        self,
        *,
        vocabulary: int,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        scales: int,
        kernel: int = 3,
        blend: float = 0.5,
        sharing: int = 4,
        normalised: bool = False,
        commitment: float = 0.25,
        standardise: bool = False,
        dropout: float = 0.0,
        groups: int = 32,
        encoder: bool = True,
        decoder: bool = True,
    ) -> None:
        super().__init__()
        shape: dict[str, Any] = {"channels": channels, "width": width, "multipliers": multipliers}
        shape |= {"blocks": blocks, "dropout": dropout, "groups": groups}
        convolution = partial(nn.Conv2d, channels, channels, kernel, padding=kernel // 2)
        if encoder:
            self.encoder, self.quant_conv = Encoder(**shape), convolution()
        if decoder:
            self.decoder, self.post_quant_conv = Decoder(**shape), convolution()
        self.quantizer = MultiScaleQuantizer(
            vocabulary=vocabulary,
            channels=channels,
            scales=scales,
            blend=blend,
            sharing=sharing,
            normalised=normalised,
            commitment=commitment,
            standardise=standardise,
        )
        self.factor = 2 ** (len(multipliers) - 1)

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

    def compress(self, image: Tensor, schedule: Schedule) -> Tensor:
        """Return the ids (B, L) of all scales of an image (B, 3, H, W) in [0, 1]."""
        return torch.cat(self.quantizer.quantise(self.features(image), schedule), dim=1)

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the ids (B, L_k) of each scale of those of all scales (B, L)."""
        return list(code.long().split(schedule.sizes, dim=1))

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the ids (B, L_k) of each scale of an image (B, 3, H, W) in [0, 1]."""
        return self.tokens(self.compress(image, schedule), schedule)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return code vectors (B, L, C) of ids (B, L) or of mixing weights (B, L, V)."""
        return self.quantizer.embed(tokens)

    def blank(self, batch: int, schedule: Schedule) -> Residual:
        """Return a canvas on which no scale is written."""
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
