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

from var.cache.base import Memory
from var.schedule import Span


class CosineScale(nn.Module):
    """Unit-length queries and keys, queries times a learned scale per head of at most 100.

    The scale is stored as its logarithm and starts at 4. No further softmax scale applies.
    """

    LIMIT = math.log(100)

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((heads,), math.log(4)))
        self.softmax_scale = 1.0

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Scale queries and keys (R, N, L, d), in float32 whatever their type."""
        scale = self.log.float().clamp(max=self.LIMIT).exp()[:, None, None]
        return F.normalize(q.float(), dim=-1) * scale, F.normalize(k.float(), dim=-1)


class FixedScale(nn.Module):
    """Queries and keys as they are, with a softmax scale of `0.25 / sqrt(d)`.

    A quarter of the usual scale: that is how the variant was published.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.softmax_scale = 0.25 / math.sqrt(channels)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys unchanged."""
        return q, k


class Attention(nn.Module):
    """Self-attention with biases on queries and values but not on keys.

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
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale = CosineScale(heads) if l2_norm else FixedScale(width // heads)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, span: Span, memory: Memory) -> Tensor:
        """Attend from the span to itself and to the past: (R, L, D) -> (R, L, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "R L (three N d) -> three R N L d", three=3, N=self.heads)
        q, k = self.scale(q, k)
        q, k = q.to(v.dtype), k.to(v.dtype)
        keys, values = memory.extend(q, k, v, span)
        mask = span.mask(past=keys.shape[2] - len(span), device=x.device)
        dropout = self.attention_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(
            q, keys, values, mask, dropout_p=dropout, scale=self.scale.softmax_scale
        )
        return self.drop(self.proj(rearrange(out, "R N L d -> R L (N d)")))
