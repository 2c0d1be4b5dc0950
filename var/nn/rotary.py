"""Attention with two-dimensional rotary positions, group by group (FlowAR, section 3).

Letters: R rows, N heads, L positions of a span, S positions attended to, d channels of a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.nn.linear import Linear
from var.schedule import Span

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


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Return x (..., L, d) with each pair of neighbouring channels turned, in float32."""
    cos, sin = turn
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(dim=-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


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


class RotaryAttention(nn.Module):
    """Multi-head self-attention in two halves, `split` and `mix`; `attend` lies between them.

    Args:
        width: of the residual stream, D.
        heads: number of heads N; divides the width.
        bias: of queries, keys and values.
        drop: dropout after the projection, 0..1.
        attention_drop: dropout of attention weights, 0..1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        drop: float = 0.0,
        attention_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads or width // heads % 4:
            raise ValueError(
                f"{heads} heads do not divide the width {width} into multiples of 4 channels, "
                "which rotary positions turn"
            )
        self.heads, self.attention_drop = heads, attention_drop
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.proj = Linear(width, width)
        self.drop = nn.Dropout(drop)

    def split(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Return turned and scaled queries, turned keys, and values (R, N, L, d) of x (R, L, D)."""
        q, k, v = rearrange(self.qkv(x), "R L (three N d) -> three R N L d", three=3, N=self.heads)
        return scaled(rotate(q, turn)).to(v.dtype), rotate(k, turn).to(v.dtype), v

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
