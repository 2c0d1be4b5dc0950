"""Attention with two-dimensional rotary positions (FlowAR, section 3; LlamaGen, 3.2).

Letters: R rows, N heads, L positions of a span, S positions attended to, d channels of a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.nn.linear import Linear
from var.schedule import Grid, Span

# Cosines and sines (L, d / 2) of the angles by which positions turn pairs of channels.
Turn = tuple[Tensor, Tensor]


def turn(span: Span, channels: int, extent: float, device: torch.device) -> Turn:
    """Return by how much the positions of a span turn the channels of a head.

    The first half of the pairs of neighbouring channels turns by the row, the second by the column.
    Grids of all sizes are stretched over `0..extent`: cell i of s lies at `extent i / s`.

    Args:
        span: the positions.
        channels: of a head, d; a multiple of 4.
        extent: of every grid.
        device: of the result.

    Raises:
        ValueError: the number of channels is no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"heads of {channels} channels cannot be turned: use a multiple of 4")
    return _turn(span, channels, extent, torch.device(device))


# As the geometry of schedules: the same at every layer and step, and to be used under autograd.
@lru_cache(maxsize=64)
def _turn(span: Span, channels: int, extent: float, device: torch.device) -> Turn:
    with torch.inference_mode(False):
        half = channels // 2
        frequency = 10000 ** (-torch.arange(0, half, 2, device=device) / half)
        angles: list[Tensor] = []
        for h, w in span.grids:
            row, column = (
                extent * torch.arange(side, device=device)[:, None] / side * frequency
                for side in (h, w)
            )
            row, column = row[:, None].expand(-1, w, -1), column[None].expand(h, -1, -1)
            angles.append(torch.cat([row, column], dim=-1).flatten(0, 1))
        angle = torch.cat(angles)
        return angle.cos(), angle.sin()


def raster_turn(grid: Grid, channels: int, base: float, device: torch.device) -> Turn:
    """Return by how much what next-token models read turns the channels of a head (LlamaGen, 3.2).

    The token before the first one, its condition, is no cell: cosines and sines are 0, so that its
    key says nothing. After it come the cells row by row, but for the last, each with the angles of
    its row and then of its column, counted from 0.

    Args:
        grid: (h, w).
        channels: of a head, d; a multiple of 4.
        base: of the frequencies.
        device: of the result, each (h w, d / 2).
    """
    half, (h, w) = channels // 2, grid
    with torch.inference_mode(False):
        frequency = base ** (-torch.arange(0, half, 2, device=device) / half)
        row, column = (torch.arange(side, device=device)[:, None] * frequency for side in (h, w))
        row, column = row[:, None].expand(-1, w, -1), column[None].expand(h, -1, -1)
        angle = torch.cat([row, column], dim=-1).flatten(0, 1)[:-1]
        none = angle.new_zeros(1, angle.shape[1])
        return torch.cat([none, angle.cos()]), torch.cat([none, angle.sin()])


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Return x (..., L, d) with each pair of neighbouring channels turned, in float32."""
    cos, sin = turn
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def behind(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys are not ahead of positions that are the last ones, (L, S) bool."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attend_back(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, drop: float = 0.0
) -> Tensor:
    """Return what positions make of themselves and of those before them, (R, L, N d).

    Args:
        q: (R, N, L, d), scaled.
        keys, values: (R, n, S, d), those of the positions at the end; n divides N.
        mask: bool (..., L, S), or what is added to scores, float; None: as far back as there is.
        drop: probability of dropping an attention weight.
    """
    causal = mask is None and q.shape[2] > 1
    if causal and keys.shape[2] > q.shape[2]:
        mask, causal = behind(q.shape[2], keys.shape[2], q.device), False
    out = F.scaled_dot_product_attention(
        q,
        keys,
        values,
        mask,
        dropout_p=drop,
        is_causal=causal,
        scale=1.0,
        enable_gqa=keys.shape[1] != q.shape[1],
    )
    return rearrange(out, "R N L d -> R L (N d)")


class RotaryAttention(nn.Module):
    """Multi-head self-attention in two halves, `split` and `mix`: what is attended to lies between.

    Args:
        width: of the residual stream, D.
        heads: number of heads N; divides the width.
        kv_heads: number of heads of keys and values, each for as many of queries; None: N.
        bias: of queries, keys and values.
        out_bias: of the projection.
        drop: dropout after the projection, 0..1.
        attention_drop: dropout of attention weights, 0..1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        drop: float = 0.0,
        attention_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads or width // heads % 4:
            raise ValueError(
                f"{heads} heads do not divide the width {width} into multiples of 4 channels, "
                "which rotary positions turn"
            )
        few = heads if kv_heads is None else kv_heads
        if few < 1 or heads % few:
            raise ValueError(f"{few} heads of keys cannot be shared evenly by {heads} of queries")
        self.heads, self.attention_drop = heads, attention_drop
        self.shares = (heads, few, few)
        self.qkv = Linear(width, width // heads * sum(self.shares), bias=bias)
        self.proj = Linear(width, width, bias=out_bias)
        self.drop = nn.Dropout(drop)

    def split(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Return turned and scaled queries, turned keys, and values (R, N, L, d) of x (R, L, D).

        Of keys and values there may be fewer heads.
        """
        all_heads = rearrange(self.qkv(x), "R L (n d) -> R n L d", n=sum(self.shares))
        heads, keys, values = self.shares
        both, v = all_heads.split((heads + keys, values), dim=1)
        q, k = rotate(both, turn).split((heads, keys), dim=1)
        return scaled(q).to(v.dtype), k.to(v.dtype), v

    def values(self, x: Tensor) -> Tensor:
        """Return values alone, (R, N, L, d), of x (R, L, D)."""
        outputs = self.qkv.out_features // sum(self.shares) * self.shares[-1]
        bias = None if self.qkv.bias is None else self.qkv.bias[-outputs:]
        v = F.linear(x, self.qkv.weight[-outputs:], bias)
        return rearrange(v, "R L (n d) -> R n L d", n=self.shares[-1])

    def mix(self, out: Tensor) -> Tensor:
        """Return the projection (R, L, D) of what was seen (R, L, D)."""
        return self.drop(self.proj(out))

    @property
    def dropped(self) -> float:
        """Probability of dropping an attention weight now."""
        return self.attention_drop if self.training else 0.0


class CrossAttention(nn.Module):
    """Multi-head attention of one stream to another one.

    Args:
        width: of the stream that asks, D.
        source: width of the other one.
        heads: number of heads N; divides the width.
    """

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(source, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def ask(self, x: Tensor, turn: Turn) -> Tensor:
        """Return turned and scaled queries (R, N, L, d) of x (R, L, D)."""
        q = self.q(x)
        split = rearrange(q, "R L (N d) -> R N L d", N=self.heads)
        return scaled(rotate(split, turn)).to(q.dtype)

    def meet(self, z: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Return turned keys, and values (R, N, L, d) of the other stream (R, L, source)."""
        k, v = rearrange(self.kv(z), "R L (two N d) -> two R N L d", two=2, N=self.heads)
        return rotate(k, turn).to(v.dtype), v


def scaled(q: Tensor) -> Tensor:
    """Return queries (..., d) over the root of d."""
    return q * q.shape[-1] ** -0.5
