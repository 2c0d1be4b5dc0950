"""Adaptive layer norm: a class shifts, scales and gates what a block does (VAR, section 3.3).

Letters: R rows, D width, P parts of a modulation (gates, scales, shifts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from var.nn.recompute import kept_by_hand


class Modulation(nn.Linear):
    """`parts` vectors per row, linear in `silu(condition)`: (R, D) -> (R, P, D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)
        self.parts = parts

    def forward(self, input: Tensor) -> Tensor:
        """Return the parts (R, P, D) of a condition (R, D)."""
        return rearrange(super().forward(F.silu(input)), "R (P D) -> R P D", P=self.parts)

    @torch.no_grad()
    def scale_parts(self, factors: Sequence[float]) -> None:
        """Multiply the weights of each part by its factor: part of the initialisation."""
        for rows, factor in zip(self.weight.chunk(self.parts), factors, strict=True):
            rows.mul_(factor)


class Offset(nn.Module):
    """A modulation (R, P, D) shared by all blocks, plus a learned offset of this one."""

    no_decay = ("table",)

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(parts, width) / width**0.5)

    def forward(self, condition: Tensor) -> Tensor:
        """Return the block's own parts (R, P, D) of the shared ones."""
        return condition + self.table

    @torch.no_grad()
    def scale_parts(self, factors: Sequence[float]) -> None:
        """Multiply each part by its factor: part of the initialisation."""
        for row, factor in zip(self.table, factors, strict=True):
            row.mul_(factor)


class Modulated(nn.Module):
    """Layer norm without weights, then `norm(x) (1 + scale) + shift`.

    Works in the precision of the residual stream and returns that of the modulation, so that a
    float32 stream feeds half-precision weights.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return (R, L, D) of x (R, L, D), scale and shift (R, D)."""
        kind = shift.dtype
        scale, shift = scale[:, None].to(x.dtype), shift[:, None].to(x.dtype)
        if kept_by_hand():
            return _Modulate.apply(x, scale, shift, self.norm.eps).to(kind)
        return torch.addcmul(shift, self.norm(x), 1 + scale).to(kind)


class _Modulate(Function):
    """`norm(x) (1 + scale) + shift`, which keeps x but not its norm for gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        normed, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, mean, inverse, scale)
        return torch.addcmul(shift, normed, 1 + scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,), (x, mean, inverse, scale) = grads, ctx.saved_tensors
        needed, none = [True, False, False], None
        x_grad, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad * (1 + scale), x, x.shape[-1:], mean, inverse, none, none, needed
        )
        normed = (x - mean).mul_(inverse)
        scale_grad = normed.mul_(grad).sum(dim=1, keepdim=True)
        return x_grad, scale_grad, grad.sum(dim=1, keepdim=True), None
