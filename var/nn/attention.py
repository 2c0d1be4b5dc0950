"""Multi-head self-attention over a span and whatever a memory holds of the groups before it.

The two published variants of VAR (section 3.3) differ only in how queries and keys are scaled: by
`CosineScale` or `FixedScale`.
Letters: R rows, N heads, L positions of the span, S positions attended to, d channels of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.nn.linear import Linear
from var.schedule import Span


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
        return q * (scale * _inverse_length(q)), k * _inverse_length(k)


def _inverse_length(x: Tensor) -> Tensor:
    """Return 1 / |x| of vectors (..., d), (..., 1) float32."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return length.clamp(min=1e-12).reciprocal()


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


def attend(
    q: Tensor, keys: Tensor, values: Tensor, span: Span, *, own: bool = False, drop: float = 0.0
) -> Tensor:
    """Return what the positions of a span make of what they see, (R, L, N d).

    A group sees everything up to its own end; nothing is masked, groups are attended to as groups.

    Args:
        q: (R, N, L, d), scaled.
        keys, values: (R, N, S, d), those of the span at the end.
        span: the positions.
        own: a group sees itself only.
        drop: probability of dropping an attention weight.
    """
    past, start = keys.shape[2] - len(span), 0
    seen: list[Tensor] = []  # not list[Tensor](): a compiler would stop there
    for size in span.sizes:
        stop = start + size
        here = slice(past + start if own else 0, past + stop)
        part = F.scaled_dot_product_attention(
            q[:, :, start:stop], keys[:, :, here], values[:, :, here], dropout_p=drop, scale=1.0
        )
        seen.append(part)
        start = stop
    out = seen[0] if len(seen) == 1 else torch.cat(seen, dim=2)
    return rearrange(out, "R N L d -> R L (N d)")


class Attention(nn.Module):
    """Self-attention with biases on queries and values but not on keys.

    In two halves, `split` and `mix`: what is attended to is the business of a memory between them.
    Groups that see no more than themselves are `attend`ed to, between `split` and `project`.

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
        return q.to(v.dtype), k.to(v.dtype), v

    def mix(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output (R, L, D) of queries (R, N, L, d) that see keys (R, N, S, d)."""
        dropout = self.dropped
        out = F.scaled_dot_product_attention(q, keys, values, mask, dropout_p=dropout, scale=1.0)
        return self.project(rearrange(out, "R N L d -> R L (N d)"))

    def project(self, out: Tensor) -> Tensor:
        """Return the projection (R, L, D) of what was seen (R, L, D)."""
        return self.drop(self.proj(out))

    @property
    def dropped(self) -> float:
        """Probability of dropping an attention weight now."""
        return self.attention_drop if self.training else 0.0
