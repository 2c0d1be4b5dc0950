"""Per-scale whitening: one codebook for scales that look nothing alike.

The mean colour of an image varies in one direction and a lot, the last detail of an edge in all
directions and little. Looked up in one codebook as they are, each scale can use only the few codes
of its own size and direction, and the coarse scales collapse first. Measured in units of their own
covariance all scales fill the same unit ball, and share all codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Mean and covariance of the vectors of each scale, as a pair of inverse linear maps.

    The statistics are buffers that training moves (`follow`); the maps themselves are pure. The
    symmetric root is taken, so that codes keep their meaning while the statistics drift.

    Args:
        scales: number of scales K.
        channels: latent channels C.
        floor: smallest variance in any direction, as a share of the scale's mean variance:
            directions with less are noise, not to be amplified.
    """

    mean: Tensor
    colour: Tensor
    white: Tensor

    def __init__(self, scales: int, channels: int, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(scales, channels))
        self.register_buffer("colour", torch.eye(channels).repeat(scales, 1, 1))
        self.register_buffer("white", torch.eye(channels).repeat(scales, 1, 1))

    def forward(self, rest: Tensor, group: int) -> Tensor:
        """Return (B, C, h, w) of scale `group` in units of its statistics."""
        centred = rest - self.mean[group, :, None, None]
        return torch.einsum("dc,bchw->bdhw", self.white[group], centred)

    def restore(self, vectors: Tensor, group: int) -> Tensor:
        """Undo `forward`: (B, C, h, w) in units of the statistics back to latent values."""
        coloured = torch.einsum("dc,bchw->bdhw", self.colour[group], vectors)
        return coloured + self.mean[group, :, None, None]

    def choose(self, scales: Sequence[int]) -> None:
        """Have the statistics of these scales, in this order, any number of times."""
        for name in ("mean", "colour", "white"):
            setattr(self, name, getattr(self, name)[list(scales)])

    @torch.no_grad()
    def follow(self, mean: Tensor, covariance: Tensor, share: float) -> None:
        """Move by `share` towards the moments (K, C), (K, C, C) of whitened vectors.

        Zero mean and unit covariance say that the statistics are right, and change nothing.
        """
        self.mean += share * torch.einsum("kdc,kc->kd", self.colour, mean)
        unit = torch.eye(mean.shape[1], device=mean.device)
        target = (
            self.colour @ torch.lerp(unit.expand_as(covariance), covariance, share) @ self.colour
        )
        values, axes = torch.linalg.eigh(target)
        values = torch.maximum(values, self.floor * values.mean(dim=1, keepdim=True)).sqrt()
        self.colour.copy_(axes * values[:, None] @ axes.mT)
        self.white.copy_(axes / values[:, None] @ axes.mT)
