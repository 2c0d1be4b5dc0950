"""The network of the flow head: the velocity of a whole group of noisy tokens (FlowAR, section 3).

What depends on the time only (`Clock`) and what depends on the backbone's features only (`Known`)
is computed apart from the tokens: in sampling the former serves all images, the latter all steps.

Letters: R rows, T times (R of them in training, one while sampling), G groups, L positions, C
latent channels, W width of the features, D width of the network.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.nn.attention import Attend, attend
from var.nn.compiling import compile_methods
from var.nn.gated import GatedMlp, gated_hidden
from var.nn.linear import Linear
from var.nn.rms import RMSNorm, modulated
from var.nn.rotary import CrossAttention, RotaryAttention, Turn, turn
from var.schedule import Span

Pair = tuple[Tensor, Tensor]


class Clock(NamedTuple):
    """What a network makes of times, (T, G).

    Attributes:
        embedding: (T, G, D).
        parts: of each block, what its modulation has from the time alone, (T, G, P D), or None.
    """

    embedding: Tensor
    parts: tuple[Tensor | None, ...]

    def at(self, i: int) -> Clock:
        """Return the i-th of the times alone."""
        parts = (None if part is None else part[i : i + 1] for part in self.parts)
        return Clock(self.embedding[i : i + 1], tuple(parts))

    def spread(self, span: Span) -> Clock:
        """Return the clock of each position: (T, G, ...) to (T, L, ...); one group as it is."""
        if len(span.sizes) == 1:
            return self
        groups = span.levels(self.embedding.device) - span.start
        parts = (None if part is None else part[:, groups] for part in self.parts)
        return Clock(self.embedding[:, groups], tuple(parts))


class Known(NamedTuple):
    """What a network makes of the features of a span.

    Attributes:
        condition: (R, L, D).
        pairs: of each block, the keys and values (R, N, L, d) that it attends to, or None.
        turn: of the positions.
        span: the positions.
    """

    condition: Tensor
    pairs: tuple[Pair | None, ...]
    turn: Turn
    span: Span

    def first(self, rows: int) -> Known:
        """Return what is known of the first rows."""
        pairs = (None if p is None else (p[0][:rows], p[1][:rows]) for p in self.pairs)
        return self._replace(condition=self.condition[:rows], pairs=tuple(pairs))


class TimeEmbedding(nn.Module):
    """Times 0..1, in thousandths, to vectors.

    Args:
        width: of the vectors, D.
        features: cosines and sines in between.
    """

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.rise = Linear(features, width)
        self.fall = Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Map times (...) to (..., D)."""
        waves = sinusoid(time_index(t), self.features).to(self.rise.weight.dtype)
        return self.fall(F.silu(self.rise(waves)))


def time_index(t: Tensor) -> Tensor:
    """Return the thousandth that a time lies in, int64; the product is one of float32s."""
    return (t.float() * 1000).long()


def sinusoid(index: Tensor, features: int) -> Tensor:
    """Return cosines, then sines of whole numbers (...) at falling frequencies: (..., features)."""
    half = features // 2
    order = torch.arange(half, dtype=torch.float32, device=index.device)
    angle = index[..., None].float() * torch.exp(-math.log(10000) * order / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def spread(x: Tensor, rows: int) -> Tensor:
    """Return x (B, ...) repeated to so many rows: the halves of guidance part here."""
    return x if len(x) == rows else torch.cat([x] * (rows // len(x)))


class SpatialBlock(nn.Module):
    """Attention and perceptron, both modulated at each position (published `cross=False`).

    Args:
        width: D.
        heads: of the attention.
        source: width of the features; of no interest here.
    """

    def __init__(self, width: int, heads: int, source: int) -> None:
        super().__init__()
        self.attend: Attend = attend
        self.attention = RotaryAttention(width, heads, bias=False)
        self.mlp = GatedMlp(width, gated_hidden(width, 4))
        self.modulation = Linear(width, 6 * width)

    def at(self, embedding: Tensor) -> None:
        """Return nothing: the modulation is that of time and features together."""

    def meet(self, z: Tensor, turn: Turn) -> None:
        """Return nothing: features come in by the modulation only."""

    def forward(
        self, x: Tensor, tint: Tensor, parts: Tensor | None, pair: Pair | None, known: Known
    ) -> Tensor:
        """Return the stream (R, L, D) after the block, of the stream (R or B, L, D).

        Args:
            x: the stream.
            tint: (R, L, D) `silu(time + condition)`.
            parts, pair: what `at` and `meet` returned.
            known: positions.
        """
        x = spread(x, len(tint))
        modulation, q, k, v = self.before(x, tint, known.turn)
        return self.after(x, modulation, self.attend(q, k, v, known.span, own=True))

    def before(self, x: Tensor, tint: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the modulation (R, L, 6 D), queries, keys and values."""
        modulation = self.modulation(tint)
        _, _, scale, _, shift, _ = modulation.chunk(6, dim=-1)
        return modulation, *self.attention.split(modulated(x, scale, shift), turn)

    def after(self, x: Tensor, modulation: Tensor, out: Tensor) -> Tensor:
        """Return the stream after attention and perceptron."""
        gate1, gate2, _, scale, _, shift = modulation.chunk(6, dim=-1)
        x = torch.addcmul(x, self.attention.mix(out), gate1)
        return torch.addcmul(x, self.mlp(modulated(x, scale, shift)), gate2)


class CrossBlock(nn.Module):
    """Attention modulated by the time, attention to the features, modulated perceptron.

    Args:
        width: D.
        heads: of both attentions.
        source: width of the features, W.
    """

    entries = ("at", "meet")  # see `var.models.base.Backbone.blocks`

    def __init__(self, width: int, heads: int, source: int) -> None:
        super().__init__()
        self.attend: Attend = attend
        self.attention = RotaryAttention(width, heads, bias=False)
        self.cross = CrossAttention(width, source, heads)
        self.norm, self.source_norm = RMSNorm(width), RMSNorm(source)
        self.mlp = GatedMlp(width, gated_hidden(width, 4))
        self.attention_modulation = Linear(width, 3 * width)
        self.mlp_modulation = Linear(width, 3 * width)

    def at(self, embedding: Tensor) -> Tensor:
        """Return the attention's modulation (T, G, 3 D) of embedded times (T, G, D)."""
        return self.attention_modulation(F.silu(embedding))

    def meet(self, z: Tensor, turn: Turn) -> Pair:
        """Return keys and values (R, N, L, d) of the features (R, L, W)."""
        return self.cross.meet(self.source_norm(z), turn)

    def forward(
        self, x: Tensor, tint: Tensor, parts: Tensor | None, pair: Pair | None, known: Known
    ) -> Tensor:
        """Return the stream (R, L, D) after the block; arguments as in `SpatialBlock`."""
        assert parts is not None and pair is not None
        q, k, v = self.before(x, parts, known.turn)
        out = self.attend(q, k, v, known.span, own=True)
        x, q = self.between(x, parts, out, known.turn)
        # Up to here, in the first block, the halves of guidance are the same.
        out = self.attend(spread(q, len(tint)), *pair, known.span, own=True)
        return self.after(spread(x, len(tint)), tint, out)

    def before(self, x: Tensor, parts: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the stream."""
        _, scale, shift = parts.chunk(3, dim=-1)
        return self.attention.split(modulated(x, scale, shift), turn)

    def between(self, x: Tensor, parts: Tensor, out: Tensor, turn: Turn) -> Pair:
        """Return the stream after the first attention, and the queries of the second."""
        gate = parts[..., : x.shape[-1]]
        x = torch.addcmul(x, self.attention.mix(out), gate)
        return x, self.cross.ask(self.norm(x).to(gate.dtype), turn)

    def after(self, x: Tensor, tint: Tensor, out: Tensor) -> Tensor:
        """Return the stream after the second attention and the perceptron."""
        gate, scale, shift = self.mlp_modulation(tint).chunk(3, dim=-1)
        x = x + self.cross.proj(out)
        return torch.addcmul(x, self.mlp(modulated(x, scale, shift)), gate)


class FlowNet(nn.Module):
    """Velocity `noise - data` of noisy tokens at a time, given the backbone's features.

    Args:
        channels: of a token, C.
        source: width of the features, W.
        width: D.
        depth: number of blocks.
        cross: blocks attend to the features (`CrossBlock`) instead of being modulated by them alone
            (`SpatialBlock`).
        heads: of the attentions; None: one for each 64 channels, as published.
        extent: of grids, see `var.nn.rotary.turn`.
    """

    def __init__(
        self,
        *,
        channels: int,
        source: int,
        width: int,
        depth: int,
        cross: bool,
        heads: int | None = None,
        extent: float = 16.0,
    ) -> None:
        super().__init__()
        heads = heads or max(1, width // 64)
        self.channels, self.per_head, self.extent = channels, width // heads, extent
        self.time = TimeEmbedding(width)
        self.condition = Linear(source, width)
        self.inlet = Linear(channels, width)
        kind = CrossBlock if cross else SpatialBlock
        self.blocks = nn.ModuleList(kind(width, heads, source) for _ in range(depth))
        self.modulation = Linear(width, 2 * width)
        self.outlet = Linear(width, channels)

    def clock(self, t: Tensor) -> Clock:
        """Return what is made of times (T, G), 0 (data) to 1 (noise)."""
        embedding = self.time(t)
        return Clock(embedding, tuple(block.at(embedding) for block in self.blocks))

    def meet(self, h: Tensor, span: Span) -> Known:
        """Return what is made of the features (R, L, W) of a span."""
        z = h.to(self.condition.weight.dtype)
        angles = turn(span, self.per_head, self.extent, h.device)
        pairs = tuple(block.meet(z, angles) for block in self.blocks)
        return Known(self.condition(z), pairs, angles, span)

    def forward(self, x: Tensor, clock: Clock, known: Known) -> Tensor:
        """Return the velocity (R, L, C) float32 of noisy tokens (B, L, C), B = R or, guided, R / 2.

        A group's positions see each other and nothing else.
        """
        embedding, parts = clock.spread(known.span)
        tint = F.silu(embedding + known.condition)
        # The stream stays in float32, whatever the type of weights and matrix products.
        h = self.inlet(x.to(self.inlet.weight.dtype)).float()
        for block, part, pair in zip(self.blocks, parts, known.pairs, strict=True):
            h = block(h, tint, part, pair, known)
        shift, scale = self.modulation(tint).chunk(2, dim=-1)
        return self.outlet(modulated(spread(h, len(tint)), scale, shift)).float()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the pieces of the blocks between their attentions, for any number of positions.

        Args:
            args, kwargs: for `torch.compile`.
        """
        names = [n for n in ("before", "between", "after") if hasattr(self.blocks[0], n)]
        compile_methods(self.blocks, names, *args, **kwargs)
