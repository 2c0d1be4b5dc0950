"""The multi-scale VQ-VAE: convolutional auto-encoder and residual quantizer (VAR, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from var.tokenizers.convolutional import Convolutional
from var.tokenizers.residual import MultiScaleQuantizer


class MultiScaleVQ(Convolutional):
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
        quantizer = partial(
            MultiScaleQuantizer,
            vocabulary=vocabulary,
            channels=channels,
            scales=scales,
            blend=blend,
            sharing=sharing,
            normalised=normalised,
            commitment=commitment,
            standardise=standardise,
        )
        shape: dict[str, Any] = {"width": width, "multipliers": multipliers, "blocks": blocks}
        shape |= {"dropout": dropout, "groups": groups, "encoder": encoder, "decoder": decoder}
        super().__init__(quantizer, channels=channels, inner=channels, kernel=kernel, **shape)
