"""Root-mean-square norms, and what shifts and scales them: in float32 whatever the type of weights.

Letters: R rows, L positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


def rms(x: Tensor, eps: float = EPS) -> Tensor:
    """Return `x / sqrt(mean(x^2) + eps)` over the last dimension, (..., D) float32."""
    x = x.float()
    if x.device.type == "cpu" and not torch.is_grad_enabled():  # where it is not one kernel anyway
        return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return F.rms_norm(x, x.shape[-1:], eps=eps)


class RMSNorm(nn.RMSNorm):
    """`rms(x) weight`.

    Args:
        width: D.
        eps: added to the mean square.
    """

    eps: float

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) in the type of x."""
        return rms(x, self.eps).to(x.dtype) * self.weight.to(x.dtype)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return `rms(x) (1 + scale) + shift`, (R, L, D), in the type of the shift."""
    return torch.addcmul(shift.float(), rms(x), 1 + scale.float()).to(shift.dtype)
