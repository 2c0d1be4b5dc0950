"""The flow head word by word (FlowAR, sections 3 to 5): slow, nothing kept, all of it in sight.

One group at a time; only the weights are those of the modules.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from var.heads.flow_net import CrossBlock, FlowNet
from var.heads.ode import published
from var.schedule import Span


def velocity(net: FlowNet, x: Tensor, t: Tensor, z: Tensor, span: Span) -> Tensor:
    """Return the velocity (R, L, C) of tokens x (R, L, C) at times t (R,), given z (R, L, W)."""
    time = net.time.fall(F.silu(net.time.rise(waves(t, net.time.features))))[:, None]
    mixed = F.silu(time + net.condition(z))
    h = net.inlet(x)
    for block in net.blocks:
        heads, cross = block.attention.heads, isinstance(block, CrossBlock)
        if cross:
            g1, a1, b1 = block.attention_modulation(F.silu(time)).chunk(3, dim=-1)
            g2, a2, b2 = block.mlp_modulation(mixed).chunk(3, dim=-1)
        else:
            g1, g2, a1, a2, b1, b2 = block.modulation(mixed).chunk(6, dim=-1)
        q, k, v = block.attention.qkv(normed(h) * (1 + a1) + b1).chunk(3, dim=-1)
        h = h + g1 * block.attention.proj(attention(q, k, v, heads, span, net.extent))
        if cross:
            q = block.cross.q(normed(h) * block.norm.weight)
            k, v = block.cross.kv(normed(z) * block.source_norm.weight).chunk(2, dim=-1)
            h = h + block.cross.proj(attention(q, k, v, heads, span, net.extent))
        y = normed(h) * (1 + a2) + b2
        h = h + g2 * block.mlp.fall(F.gelu(block.mlp.gate(y)) * block.mlp.rise(y))
    shift, scale = net.modulation(mixed).chunk(2, dim=-1)
    return net.outlet(normed(h) * (1 + scale) + shift)


def waves(t: Tensor, features: int) -> Tensor:
    """Return cosines, then sines of the thousandths of times (R,), (R, features)."""
    half = features // 2
    frequency = (-math.log(10000) * torch.arange(half) / half).exp()  # float32, as published
    angle = (t.float() * 1000).trunc()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def normed(x: Tensor) -> Tensor:
    """Return x over the root of its mean square."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, span: Span, extent: float) -> Tensor:
    """Return what all positions (R, L, N d) see of all positions."""
    (grid,) = span.grids
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    q, k = turned(q, grid, extent), turned(k, grid, extent)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def turned(x: Tensor, grid: tuple[int, int], extent: float) -> Tensor:
    """Return x (..., L, d), pairs of channels taken for complex numbers and turned."""
    (h, w), half = grid, x.shape[-1] // 2
    frequency = 10000 ** (-torch.arange(0, half, 2) / half)
    row = (extent * torch.arange(h) / h).repeat_interleave(w)[:, None] * frequency
    column = (extent * torch.arange(w) / w).repeat(h)[:, None] * frequency
    angle = torch.cat([row, column], dim=-1)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def times(name: str, steps: int) -> list[float]:
    """Return the times between the steps of a solver."""
    if name == "published":
        return published(steps).tolist()
    return [1 - i / steps for i in range(steps + 1)]


def followed(
    net: FlowNet,
    noise: Tensor,
    h: Tensor,
    span: Span,
    *,
    scale: float,
    interval: tuple[float, float],
    solver: str,
    steps: int,
) -> Tensor:
    """Return tokens (B, L, C) from noise (B, L, C), given features (2 B, L, W), null half last."""

    def guided(x: Tensor, t: float) -> Tensor:
        both, now = torch.cat([x, x]).float(), torch.full((len(h),), t)
        given, null = velocity(net, both, now, h, span).chunk(2)
        return null + scale * (given - null) if interval[0] <= t <= interval[1] else given

    x = noise.double()
    for t, later in pairwise(times(solver, steps)):
        step, v = later - t, guided(x, t)
        if solver == "midpoint":
            v = guided(x + step / 2 * v, t + step / 2)
        if solver == "heun" and later > 0:
            v = (v + guided(x + step * v, later)) / 2
        x = x + step * v
    return x.float()


def losses(net: FlowNet, h: Tensor, tokens: Tensor, span: Span, t: Tensor, noise: Tensor) -> Tensor:
    """Return the mean error of each scale of each image, (B, K), at times t (B, K)."""
    found, start = list[Tensor](), 0
    for k in range(span.start, span.stop):
        group = span.schedule[k : k + 1]
        here, now = slice(start, start + len(group)), t[:, k - span.start]
        y, eps = tokens[:, here], noise[:, here]
        x = (1 - now[:, None, None]) * y + now[:, None, None] * eps
        error = velocity(net, x, now, h[:, here], group) - (eps - y)
        found.append(error.square().mean(dim=(1, 2)))
        start += len(group)
    return torch.stack(found, dim=1)
