"""The multi-scale residual quantizer and its canvas (VAR, sections 3.2 and 6).

A latent grid is written coarse to fine: each scale adds what the scales before it missed. Encoding,
teacher forcing, sampling and training all run through `Residual.write`, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.schedule import Schedule
from var.tokenizers.codebook import Codebook
from var.tokenizers.pyramid import Pyramid
from var.tokenizers.standardise import Standardise


class Blend(nn.Conv2d):
    """Phi: `(1 - share) h + share conv3x3(h)`, smoothing what a scale adds."""

    def __init__(self, channels: int, share: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        return h * (1 - self.share) + super().forward(h) * self.share


@dataclass(frozen=True, eq=False)
class Residual(Pyramid):
    """The canvas of the residual quantizer: a latent that scales are added to.

    Tokens are ids (B, L_k) or mixtures of codes (B, L_k, V).

    Attributes:
        quantizer: how tokens become latents.
    """

    quantizer: MultiScaleQuantizer

    def _with(self, tokens: Tensor) -> Tensor:
        (h, w), size = self.schedule.grids[self.done], self.latent.shape[-2:]
        vectors = rearrange(self.quantizer.embed(tokens), "B (h w) C -> B C h w", h=h, w=w)
        return self.latent + self.quantizer.lift(vectors, self.done, self.schedule, tuple(size))


class Quantised(NamedTuple):
    """What the quantizer's training forward returns.

    Attributes:
        latent: (B, C, h, w) quantised; its gradient goes straight through to the input.
        loss: scalar, codebook and commitment terms averaged over scales.
        tokens: ids of each scale, (B, L_k).
        vectors: the standardised vectors that were looked up, (B, L_k, C), no gradient.
    """

    latent: Tensor
    loss: Tensor
    tokens: list[Tensor]
    vectors: list[Tensor]


class MultiScaleQuantizer(nn.Module):
    """Quantise a latent grid, scale by scale, against one codebook.

    Args:
        vocabulary: number of codes V.
        channels: latent channels C.
        scales: number of scales K that it is made for (sets the number of Phis if `sharing` is 0,
            and of statistics if `standardise`).
        blend: share of the convolution in Phi (published `quant_resi`); 0 leaves Phi out.
        sharing: number of Phis spread over the scales (`share_quant_resi`); 0: one per scale.
        normalised: look codes up by direction only (`using_znorm`).
        commitment: weight of the term that ties the encoder to the codes (`beta`).
        standardise: look codes up in units of each scale's running mean and deviation, so that
            all scales share the whole codebook. Ours; published tokenizers do without.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        channels: int,
        scales: int,
        blend: float = 0.5,
        sharing: int = 4,
        normalised: bool = False,
        commitment: float = 0.25,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.codebook = Codebook(size=vocabulary, channels=channels, normalised=normalised)
        share = abs(blend)
        count = 0 if share == 0 else sharing or scales
        self.phi = nn.ModuleList(Blend(channels, share) for _ in range(count))
        self.standard = Standardise(scales, channels) if standardise else None
        self.commitment, self.scales, self.sharing = commitment, scales, sharing
        # What decides, besides the weights, what tokens mean.
        self.rules = (blend, normalised)

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.codebook.weight.shape[1]

    def rescale(self, origin: Sequence[int]) -> None:
        """Become a quantizer of other scales: what is scale k's own was that of `origin[k]`."""
        if self.standard is not None:
            self.standard.choose(origin)
        if self.sharing == 0:
            kept = [self.phi[self.phi_index(k, self.scales)] for k in origin] if self.phi else []
            self.phi = nn.ModuleList(deepcopy(phi) for phi in kept)
        self.scales = len(origin)

    def phi_index(self, group: int, scales: int) -> int:
        """Return which Phi serves scale `group` of `scales` (VAR, section 6.1).

        Computed in float64 as published: exact ties between neighbours are decided by rounding.
        """
        count = len(self.phi)
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(edge, 1 - edge, count)
        return int(np.argmin(np.abs(ticks - group / max(1, scales - 1))))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return code vectors (B, L, C) of ids (B, L) or of mixing weights (B, L, V)."""
        return self.codebook(tokens)

    def lift(
        self, vectors: Tensor, group: int, schedule: Schedule, size: tuple[int, ...]
    ) -> Tensor:
        """Return what code vectors (B, C, h_k, w_k) of scale `group` add to a latent of `size`."""
        if self.standard is not None:
            vectors = self.standard.restore(vectors, group)
        if tuple(vectors.shape[-2:]) != tuple(size):
            vectors = F.interpolate(vectors, size, mode="bicubic")
        return self.phi[self.phi_index(group, len(schedule))](vectors) if self.phi else vectors

    def blank(self, batch: int, schedule: Schedule) -> Residual:
        """Return a canvas of zeros the size of the schedule's last grid."""
        weight = self.codebook.weight
        latent = weight.new_zeros(batch, self.channels, *schedule.grids[-1])
        first = weight.new_zeros(batch, schedule.sizes[0], self.channels)
        return Residual(schedule, 0, latent, (first,), self)

    def steps(
        self, latent: Tensor, schedule: Schedule
    ) -> Iterator[tuple[Tensor, Tensor, Residual]]:
        """Quantise scale by scale; yield (vectors looked up, ids, canvas with them written)."""
        if tuple(latent.shape[-2:]) != schedule.grids[-1]:
            raise ValueError(
                f"the latent grid is {tuple(latent.shape[-2:])}, "
                f"the schedule ends on {schedule.grids[-1]}"
            )
        canvas = self.blank(len(latent), schedule)
        for group, grid in enumerate(schedule.grids):
            with torch.no_grad():
                rest = F.interpolate(latent - canvas.latent, grid, mode="area")
                if self.standard is not None:
                    rest = self.standard(rest, group)
                vectors = rearrange(rest, "B C h w -> B (h w) C")
                ids = self.codebook.nearest(vectors)
            canvas = canvas.write(ids)
            yield vectors, ids, canvas

    def quantise(self, latent: Tensor, schedule: Schedule) -> list[Tensor]:
        """Return the ids of each scale, (B, L_k); in float32 whatever the autocast state."""
        with torch.autocast(latent.device.type, enabled=False):
            return [ids for _, ids, _ in self.steps(latent.float(), schedule)]

    def seeds(self, latent: Tensor, schedule: Schedule) -> list[Tensor]:
        """Return vectors (B, L_k, C) of each scale on which codes could lie, not standardised.

        They are those of a residual pyramid without quantisation error.
        """
        vectors, written = [], torch.zeros_like(latent)
        for group, grid in enumerate(schedule.grids):
            rest = F.interpolate(latent - written, grid, mode="area")
            vectors.append(rest.movedim(1, -1).flatten(1, 2))
            if self.standard is not None:
                rest = self.standard(rest, group)
            written = written + self.lift(rest, group, schedule, tuple(latent.shape[-2:]))
        return vectors

    def forward(self, latent: Tensor, schedule: Schedule) -> Quantised:
        """Quantise for training (VAR, section 3.2): in float32 whatever the autocast state."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            loss, tokens, vectors = latent.new_zeros(()), [], []
            written = latent
            for looked_up, ids, canvas in self.steps(latent, schedule):
                written = canvas.latent
                loss = loss + self.commitment * F.mse_loss(latent, written.detach())
                loss = loss + F.mse_loss(written, latent.detach())
                tokens.append(ids)
                vectors.append(looked_up)
            through = latent + (written - latent).detach()
            return Quantised(through, loss / len(schedule), tokens, vectors)
