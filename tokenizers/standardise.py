"""Per-scale standardisation: one codebook for scales of very different size.

The mean colour of an image and the last detail of an edge differ by an order of magnitude. Looked up
in one codebook as they are, each scale can use only the few codes of its own size, and the coarse
scales collapse first. Measured in their own running mean and deviation they share all codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Running mean and deviation of each channel at each scale.

    Statistics follow the data in training mode (the first batch sets them), and rest otherwise.

    Args:
        scales: number of scales K.
        channels: latent channels C.
        momentum: share of a new batch in the running statistics.
    """

    mean: Tensor
    scale: Tensor
    seen: Tensor

    def __init__(self, scales: int, channels: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(scales, channels))
        self.register_buffer("scale", torch.ones(scales, channels))
        self.register_buffer("seen", torch.zeros(scales))
        self.momentum = momentum

    def forward(self, rest: Tensor, group: int) -> Tensor:
        """Return (B, C, h, w) of scale `group` in units of its statistics; update them in training."""
        if self.training:
            self._follow(rest, group)
        mean, scale = self._of(group)
        return (rest - mean) / scale

    def restore(self, vectors: Tensor, group: int) -> Tensor:
        """Undo `forward`: (B, C, h, w) in units of the statistics back to latent values."""
        mean, scale = self._of(group)
        return vectors * scale + mean

    def _of(self, group: int) -> tuple[Tensor, Tensor]:
        # Copies: autograd saves them, and the next scale's update writes into the buffers.
        return self.mean[group, :, None, None].clone(), self.scale[group, :, None, None].clone()

    @torch.no_grad()
    def _follow(self, rest: Tensor, group: int) -> None:
        variance, mean = torch.var_mean(rest.float(), dim=(0, 2, 3), correction=0)
        share = torch.where(self.seen[group] > 0, self.momentum, 1.0)
        self.mean[group] = self.mean[group].lerp(mean, share)
        self.scale[group] = self.scale[group].lerp(variance.sqrt().clamp(min=1e-4), share)
        self.seen[group] = 1
