"""The single-scale VQ-VAE: convolutional auto-encoder and one codebook (LlamaGen, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.chain import check_chain
from var.tokenizers.convolutional import Convolutional
from var.tokenizers.quantizer import Quantizer


class VQ(Convolutional):
    """Images (B, 3, H, W) in [0, 1] to one grid of ids, and back.

    The published tokenizers are `vocabulary=16384, channels=8, inner=256, width=128, blocks=2` with
    `multipliers=(1, 1, 2, 2, 4)` (VQ-16) or `(1, 2, 2, 4)` (VQ-8).

    Args:
        vocabulary: number of codes V.
        channels: latent channels C.
        inner: channels of the auto-encoder's own latent.
        width: channels of the finest resolution of the auto-encoder.
        multipliers: channel factor per resolution, finest first; each further one halves the grid.
        blocks: residual blocks per resolution.
        unit, commitment, entropy: see `Quantizer`.
        dropout: inside residual blocks.
        groups: of the auto-encoder's group norms.
        encoder, decoder: leave a half out by passing False (a decoder is all that sampling needs).
    """

    any_schedule = True

    def __init__(
        self,
        *,
        vocabulary: int,
        channels: int,
        inner: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        unit: bool = True,
        commitment: float = 0.25,
        entropy: float = 0.0,
        dropout: float = 0.0,
        groups: int = 32,
        encoder: bool = True,
        decoder: bool = True,
    ) -> None:
        quantizer = partial(
            Quantizer,
            vocabulary=vocabulary,
            channels=channels,
            unit=unit,
            commitment=commitment,
            entropy=entropy,
        )
        shape: dict[str, Any] = {"width": width, "multipliers": multipliers, "blocks": blocks}
        shape |= {"dropout": dropout, "groups": groups, "encoder": encoder, "decoder": decoder}
        super().__init__(quantizer, channels=channels, inner=inner, kernel=1, **shape)

    @property
    def terms(self) -> dict[str, int]:
        """Number of codes."""
        return {"vocabulary": len(self.quantizer.codebook.weight)}

    def tokens(self, code: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        """Return the ids (B, 1) of each group of those of the grid (B, h w), row-major.

        Raises:
            UserError: the schedule's groups are not single cells of one grid.
            ValueError: the ids are those of another grid.
        """
        check_chain(schedule)
        h, w = schedule.grids[0]
        if code.shape[1] != h * w:
            raise ValueError(f"{code.shape[1]} ids are not the cells of a grid of {h} x {w}")
        order = [cell for group in schedule.cells for cell in group or ()]
        return list(code[:, order].long().split(1, dim=1))
