"""The FlowAR backbone: a transformer over scales of a continuous latent, with a flow for a head.

Section numbers refer to the published system (FlowAR, arXiv 2412.15205). Letters: R rows, L
positions of a span, D width, C latent channels, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from var.cache.base import Cache, CacheKind, Memory
from var.cache.none import NoMemory
from var.cache.static import Static
from var.condition import Condition
from var.heads.flow import Flow
from var.heads.flow_net import FlowNet
from var.models.base import check_span
from var.nn.adaln import Modulation
from var.nn.attention import Attend, attend
from var.nn.classes import Classes
from var.nn.compiling import compile_methods
from var.nn.gated import GatedMlp, gated_hidden
from var.nn.rms import RMSNorm, modulated
from var.nn.rotary import RotaryAttention, Turn, turn
from var.schedule import Schedule, Span


class Block(nn.Module):
    """`x += g1 attention(n1(x))`, `x += g2 mlp(n2(x))`, modulated by the class (section 3).

    Args:
        width: of the residual stream, D.
        heads: of the attention.
        mlp_ratio: hidden width of an ungated perceptron with as many weights, in units of `width`.
        drop: dropout after projection and perceptron.
        attention_drop: dropout of attention weights.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float, drop: float, attention_drop: float
    ) -> None:
        super().__init__()
        self.modulation = Modulation(width, 6)
        self.attention = RotaryAttention(width, heads, drop=drop, attention_drop=attention_drop)
        self.attend: Attend = attend
        self.mlp = GatedMlp(width, gated_hidden(width, mlp_ratio), drop=drop)

    def forward(self, x: Tensor, label: Tensor, span: Span, memory: Memory, turn: Turn) -> Tensor:
        """Return the stream (R, L, D) after the block."""
        parts = memory.once(self.modulation, label)
        q, k, v = self.before(x, parts, turn)
        keys, values = memory.extend(q, k, v, span)
        out = self.attend(q, keys, values, span, drop=self.attention.dropped)
        return self.after(x, parts, out)

    def before(self, x: Tensor, parts: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values (R, N, L, d) for a modulation (R, 6, D)."""
        _, _, scale, _, shift, _ = parts[:, :, None].unbind(dim=1)
        return self.attention.split(modulated(x, scale, shift), turn)

    def after(self, x: Tensor, parts: Tensor, out: Tensor) -> Tensor:
        """Return the stream (R, L, D) after attention and perceptron."""
        gate1, gate2, _, scale, _, shift = parts[:, :, None].unbind(dim=1)
        x = torch.addcmul(x, self.attention.mix(out), gate1)
        return torch.addcmul(x, self.mlp(modulated(x, scale, shift)), gate2)


class FlowAR(nn.Module):
    """The next-scale prediction transformer with a flow-matching head.

    Two stacks of blocks of one kind, called encoder and decoder as published; both see all coarser
    scales.

    Args:
        channels: of the latent, C.
        classes: number of classes; the null class comes on top.
        ladder: side or (h, w) of each scale. The model can only be run on this schedule.
        width: of the residual stream, D.
        encoder_depth, decoder_depth: numbers of blocks.
        heads, decoder_heads: attention heads of encoder and decoder; None: the same.
        mlp_ratio: hidden width of the perceptrons in units of `width`, before gating.
        head_depth, head_width: blocks and width of the flow's network.
        head_heads: its attention heads; None: one for each 64 channels.
        cross: whether its blocks attend to the features, see `var.heads.flow_net.FlowNet`.
        extent: what the positions of every grid are stretched to, see `var.nn.rotary.turn`.
        drop: dropout after projections and perceptrons of the backbone.
        attention_drop: dropout of its attention weights.
    """

    per_position = ("encoder_places", "decoder_places", "head_places")  # see `var.training.growth`

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        ladder: Sequence[int | Sequence[int]],
        width: int,
        encoder_depth: int,
        decoder_depth: int,
        heads: int,
        decoder_heads: int | None = None,
        mlp_ratio: float = 4.0,
        head_depth: int,
        head_width: int,
        head_heads: int | None = None,
        cross: bool = False,
        extent: float = 16.0,
        drop: float = 0.0,
        attention_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.schedule, self.extent = Schedule.scales(ladder), extent
        self.classes = Classes(classes, width)
        self.inlet = nn.Linear(channels, width)
        places = (self.schedule.starts[-1], width)
        self.encoder_places, self.decoder_places, self.head_places = (
            nn.Parameter(torch.empty(places)) for _ in range(3)
        )
        block = partial(Block, width, drop=drop, attention_drop=attention_drop)
        block = partial(block, mlp_ratio=mlp_ratio)
        self.encoder = nn.ModuleList(block(heads) for _ in range(encoder_depth))
        self.decoder = nn.ModuleList(block(decoder_heads or heads) for _ in range(decoder_depth))
        self.inlet_norm, self.encoder_norm, self.decoder_norm = (RMSNorm(width) for _ in range(3))
        self.bridge = nn.Linear(width, width)
        net = partial(FlowNet, channels=channels, source=width, cross=cross, extent=extent)
        self.head = Flow(net(width=head_width, depth=head_depth, heads=head_heads))
        # Held as long as the model is: captured graphs read them.
        self._turns: dict[tuple[Span, int, torch.device], Turn] = {}
        self.initialise()

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache of the given kind, static by default, for the first `groups`."""
        return (kind or Static)(self._depth, groups)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D).

        Args:
            x: (R, L, C) the scale before, resized to each scale of `span`; what it holds for scale
                0 is ignored, the class stands in its place.
            span: scales of this model's ladder; without a cache they begin with scale 0.
            condition: labels (R,); -1 and `classes` both stand for the null class.
            cache: what was read before; the caller advances it.

        Raises:
            ValueError: another ladder, scales out of turn, or (seen on the CPU only) a label out of
                range.
        """
        check_span(span, self.schedule, cache)
        layers = cache.layers if cache is not None else [NoMemory()] * self._depth
        label, here = layers[0].once(self.classes, condition.labels), span.positions
        # The stream stays in float32, whatever the type of weights and matrix products.
        h = self._source(x, span, label).float()
        h = self.inlet_norm(h + self.encoder_places[here])
        h = self.encoder_norm(self._through(self.encoder, h, label, span, layers))
        h = self.bridge(h.to(self.bridge.weight.dtype)).float() + self.decoder_places[here]
        h = self._through(self.decoder, h, label, span, layers[len(self.encoder) :])
        return self.decoder_norm(h) + self.head_places[here]

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks: encoder, decoder and the flow's network."""
        return [*self.encoder, *self.decoder, *self.head.net.blocks]

    @property
    def _depth(self) -> int:
        return len(self.encoder) + len(self.decoder)

    def _source(self, x: Tensor, span: Span, label: Tensor) -> Tensor:
        first = self.schedule.sizes[0] if span.start == 0 else 0
        rest = self.inlet(x[:, first:].to(self.inlet.weight.dtype))
        return torch.cat([label[:, None].expand(-1, first, -1).to(rest.dtype), rest], dim=1)

    def _through(
        self, blocks: nn.ModuleList, h: Tensor, label: Tensor, span: Span, layers: Sequence[Memory]
    ) -> Tensor:
        for block, memory in zip(blocks, layers, strict=False):
            h = block(h, label, span, memory, self._turn(span, h, block.attention.heads))
        return h

    def _turn(self, span: Span, h: Tensor, heads: int) -> Turn:
        key = (span, heads, h.device)
        if key not in self._turns:
            self._turns[key] = turn(span, h.shape[-1] // heads, self.extent, h.device)
        return self._turns[key]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the pieces of all blocks between their attentions, the head's included.

        Args:
            args, kwargs: for `torch.compile`.
        """
        compile_methods([*self.encoder, *self.decoder], ("before", "after"), *args, **kwargs)
        self.head.net.compile(*args, **kwargs)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw new weights: Xavier-uniform, biases 0; embeddings N(0, 0.02) (section 5)."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        tables = (self.encoder_places, self.decoder_places, self.head_places)
        for table in (self.classes.weight, *tables):
            nn.init.normal_(table, std=0.02)
