"""Multi-head self-attention over a span and whatever a memory holds of the groups before it.

The two published variants of VAR (section 3.3) differ only in how queries and keys are scaled: by
`CosineScale` or `FixedScale`.
Letters: R rows, N heads, L positions of the span, S positions attended to, d channels of a head.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from var.nn.linear import Linear
from var.nn.recompute import kept_by_hand
from var.schedule import Span

# The kernel of a CPU takes its time over queries that are fewer.
_LEAST = {"cpu": 192}


class CosineScale(nn.Module):
    """Unit-length queries and keys, queries times a learned scale per head of at most 100.

    The scale is stored as its logarithm and starts at 4. No further softmax scale applies.
    """

    LIMIT = math.log(100)

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((heads,), math.log(4)))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Scale queries and keys (R, N, L, d), in float32 whatever their type."""
        scale = self.log.float().clamp(max=self.LIMIT).exp()[:, None, None]
        return unit_length(q, scale), unit_length(k)


def unit_length(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return vectors (..., d) of length 1, or of length `scale` (..., 1, 1), in float32 at least.

    For gradients no more is kept than the result and the lengths.
    """
    if kept_by_hand():
        return _UnitLength.apply(x, scale)
    return _unit_length(x, scale)[0]


def _unit_length(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    inverse = length.clamp(min=1e-12).reciprocal()
    return x * (inverse if scale is None else scale * inverse), inverse


class _UnitLength(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None) -> Tensor:
        y, inverse = _unit_length(x, scale)
        ctx.save_for_backward(y, inverse, scale)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,), (y, inverse, scale) = grads, ctx.saved_tensors
        along = (grad * y).sum(dim=-1, keepdim=True)  # what the length of x takes no notice of
        if scale is None:
            return torch.addcmul(grad, y, along, value=-1).mul_(inverse).to(ctx.dtype), None
        along = along / scale
        x_grad = torch.addcmul(grad * scale, y, along, value=-1).mul_(inverse)
        return x_grad.to(ctx.dtype), along.sum_to_size(scale.shape)


class FixedScale(nn.Module):
    """Queries times `0.25 / sqrt(d)`, keys as they are.

    A quarter of the usual scale: that is how the variant was published.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = 0.25 / math.sqrt(channels)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Scale queries (R, N, L, d)."""
        return q * self.factor, k


class Attend(Protocol):
    """What computes attention over groups: `attend`, or another way to the same result."""

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        span: Span,
        *,
        own: bool = False,
        drop: float = 0.0,
    ) -> Tensor:
        """Return what the positions of a span make of what they see; see `attend`."""
        ...


def attend(
    q: Tensor, keys: Tensor, values: Tensor, span: Span, *, own: bool = False, drop: float = 0.0
) -> Tensor:
    """Return what the positions of a span make of what they see, (R, L, N d).

    A group sees everything up to its own end. Groups are attended to one by one, without a mask; on
    a CPU small ones together, under a mask of their own.

    Args:
        q: (R, N, L, d), scaled.
        keys, values: (R, N, S, d), those of the span at the end.
        span: the positions.
        own: a group sees itself only.
        drop: probability of dropping an attention weight.
    """
    seen: list[Tensor] = []  # not list[Tensor](): a compiler would stop there
    pieces = _pieces(span, 1 if own else _LEAST.get(q.device.type, 1))
    queries = q.split([len(piece) for piece in pieces], dim=2)
    # From the end on, each of what is left: gradients of what many see add up on few copies.
    for piece, query in zip(reversed(pieces), reversed(queries), strict=True):
        start = keys.shape[2] - len(piece)
        here = slice(start if own else 0, None)
        part = F.scaled_dot_product_attention(
            query,
            keys[:, :, here],
            values[:, :, here],
            piece.mask(start, device=q.device) if len(piece.sizes) > 1 else None,
            dropout_p=drop,
            scale=1.0,
        )
        seen.append(rearrange(part, "R N L d -> R L (N d)"))
        keys, values = keys[:, :, :start], values[:, :, :start]
    return seen[0] if len(seen) == 1 else torch.cat(seen[::-1], dim=1)


@lru_cache(maxsize=64)
def _pieces(span: Span, least: int) -> tuple[Span, ...]:
    """Return a span in pieces of groups, all but the first of so many positions at least."""
    pieces, stop = [], span.stop
    for start in range(span.stop - 1, span.start - 1, -1):
        piece = span.schedule[start:stop]
        if len(piece) >= least or start == span.start:
            pieces.insert(0, piece)
            stop = start
    return tuple(pieces)


class Attention(nn.Module):
    """Self-attention with biases on queries and values but not on keys.

    In two halves, `split` and `project`: what is attended to is the business of a memory between
    them, and of `attend`.

    Args:
        width: of the residual stream, D.
        heads: number of heads N; divides the width.
        l2_norm: cosine attention (`CosineScale`) instead of `FixedScale`.
        drop: dropout after the projection, 0..1.
        attention_drop: dropout of attention weights, 0..1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        l2_norm: bool = True,
        drop: float = 0.0,
        attention_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads = heads
        self.attention_drop = attention_drop
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale = CosineScale(heads) if l2_norm else FixedScale(width // heads)
        self.proj = Linear(width, width)
        self.drop = nn.Dropout(drop)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values (R, N, L, d) of x (R, L, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv.product(x, bias)
        q, k, v = rearrange(qkv, "R L (three N d) -> three R N L d", three=3, N=self.heads)
        q, k = self.scale(q, k)
        if kept_by_hand():  # views would keep all of qkv for gradients
            k, v = (each.clone() if each._is_view() else each for each in (k, v))
        return q.to(v.dtype), k.to(v.dtype), v

    def project(self, out: Tensor) -> Tensor:
        """Return the projection (R, L, D) of what was seen (R, L, D)."""
        return self.drop(self.proj(out))

    @property
    def dropped(self) -> float:
        """Probability of dropping an attention weight now."""
        return self.attention_drop if self.training else 0.0
