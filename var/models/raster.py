"""The raster backbone: a transformer that predicts an image token by token (LlamaGen).

Section numbers refer to the published system (LlamaGen, arXiv 2406.06525). Letters: R rows, L
positions of a span, D width, T features of a text, N heads, d channels of a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from var.cache.base import Cache, CacheKind, Memory
from var.cache.none import NoMemory
from var.cache.static import Static
from var.condition import Condition
from var.errors import UserError
from var.heads.categorical import Categorical
from var.models.base import check_span
from var.nn import text as texts
from var.nn.classes import Classes
from var.nn.compiling import compile_methods
from var.nn.gated import GatedMlp
from var.nn.mlp import drop_path
from var.nn.rms import RMSNorm
from var.nn.rotary import RotaryAttention, Turn, attend_back, behind, raster_turn
from var.schedule import Grid, Schedule, Span


class Block(nn.Module):
    """`x += attention(norm(x))`, `x += mlp(norm(x))` (section 3.2).

    Args:
        width: of the residual stream, D.
        heads, kv_heads: of the attention, see `RotaryAttention`.
        hidden: width of the perceptron's middle.
        eps: of the norms.
        drop: dropout after attention and perceptron.
        attention_drop: dropout of attention weights.
        path: probability of dropping a half in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None,
        *,
        hidden: int,
        eps: float,
        drop: float,
        attention_drop: float,
        path: float,
    ) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.attention = RotaryAttention(
            width,
            heads,
            kv_heads=kv_heads,
            bias=False,
            out_bias=False,
            drop=drop,
            attention_drop=attention_drop,
        )
        self.mlp = GatedMlp(width, hidden, silu=True, drop=drop)
        self.path = drop_path(path)

    def forward(
        self,
        x: Tensor,
        turn: Turn,
        span: Span,
        memory: Memory,
        bias: Tensor | None,
        prefix: texts.Prefix | None,
    ) -> tuple[Tensor, texts.Prefix | None]:
        """Return the stream (R, L, D) after the block, and that of the text before it, if any."""
        q, k, v = self.before(x, turn)
        if prefix is not None:
            prefix, mean = self.through(prefix)
            v = torch.cat([mean, v[:, :, 1:]], dim=2)
        keys, values = memory.extend(q, k, v, span)
        out = attend_back(q, keys, values, bias, drop=self.attention.dropped)
        return self.after(x, out), prefix

    def before(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values (R, N, L, d)."""
        dtype = self.attention.qkv.weight.dtype
        return self.attention.split(self.attention_norm(x).to(dtype), turn)

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the stream (R, L, D) after attention and perceptron."""
        x = x + self._kept(self.attention.mix(out))
        return x + self._kept(self.mlp(self.mlp_norm(x).to(out.dtype)))

    def through(self, prefix: texts.Prefix) -> tuple[texts.Prefix, Tensor]:
        """Return the text's stream after the block, and the mean (R, N, 1, d) of its values."""
        x = self.attention_norm(prefix.x).to(self.attention.qkv.weight.dtype)
        heads, few, _ = self.attention.shares
        values = self.attention.values(x).repeat_interleave(heads // few, dim=1)
        seen, mean = texts.means(values, prefix.valid)
        return texts.Prefix(self.after(prefix.x, seen), prefix.valid), mean[:, :: heads // few]

    def _kept(self, h: Tensor) -> Tensor:
        # Blocks differ in their path: if it were looked at, each would be compiled for itself.
        return self.path(h) if self.training else h


class Raster(nn.Module):
    """The next-token prediction transformer.

    What it reads for a token is the token before it; for the first one the condition: a class, or
    the last feature of a text.

    Args:
        vocabulary: number of codes.
        grid: side or (h, w) of the token grid. The model can only be run on its raster.
        depth: number of blocks.
        width: of the residual stream, D.
        heads: attention heads.
        kv_heads: heads of keys and values; None: as many.
        hidden: width of the perceptrons' middle; None: 8 / 3 of the width, up to a multiple of 256.
        classes: number of classes; the null class comes on top. None: conditioned on texts.
        null_class: whether there is one.
        text: channels of a text's features; None: conditioned on classes.
        text_length: number of them.
        norm_eps: of the norms.
        base: of the rotary frequencies.
        token_drop: dropout of what is read.
        drop: dropout after attentions and perceptrons.
        attention_drop: dropout of attention weights.
        drop_path: probability of dropping a half of the last block; rises linearly from 0.
        label_smoothing: of the training loss.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        grid: int | Grid,
        depth: int,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        hidden: int | None = None,
        classes: int | None = None,
        null_class: bool = True,
        text: int | None = None,
        text_length: int = 120,
        norm_eps: float = 1e-5,
        base: float = 10000.0,
        token_drop: float = 0.0,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.schedule, self.base = Schedule.raster(grid), base
        self.codes, self.token_drop = nn.Embedding(vocabulary, width), nn.Dropout(token_drop)
        self.source = _source(classes, null_class, text, text_length, width)
        hidden = gated_width(width) if hidden is None else hidden
        block = partial(Block, width, heads, kv_heads, hidden=hidden, eps=norm_eps, drop=drop)
        block = partial(block, attention_drop=attention_drop)
        paths = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(block(path=path) for path in paths)
        self.norm = RMSNorm(width, norm_eps)
        head = partial(Categorical, width, vocabulary, bias=False, mixtures=False)
        self.head = head(label_smoothing=label_smoothing)
        # Held as long as the model is: captured graphs read them.
        self._turns: dict[torch.device, Turn] = {}
        self.initialise()

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache of the given kind, static by default, for the first `groups`."""
        return (kind or Static)(len(self.blocks), groups)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D).

        Args:
            x: (R, L) int64 the token before each of `span`; what it holds for the first one is
                ignored, the condition stands in its place.
            span: tokens of this model's raster; without a cache they begin with the first one.
            condition: labels (R,), of which -1 and `classes` both stand for the null class; or
                texts (R, T, E), null where the label is -1.
            cache: what was read before; the caller advances it.

        Raises:
            UserError: a condition of the other kind.
            ValueError: another raster, tokens out of turn, or (seen on the CPU only) a label out of
                range.
        """
        check_span(span, self.schedule, cache)
        layers = cache.layers if cache is not None else [NoMemory()] * len(self.blocks)
        h, prefix = self._opened(x, span, condition)
        bias = self._bias(condition, span)
        turn = self._turn(span, h)
        for block, memory in zip(self.blocks, layers, strict=True):
            h, prefix = block(h, turn, span, memory, bias, prefix)
        if prefix is not None:
            h = torch.cat([prefix.x[:, -1:], h[:, 1:]], dim=1)
        return self.norm(h).to(self.head.linear.weight.dtype)

    def _opened(
        self, x: Tensor, span: Span, condition: Condition
    ) -> tuple[Tensor, texts.Prefix | None]:
        """Return the stream (R, L, D), and the text's if it is the turn of the first token.

        The stream is in float32, whatever the type of weights and matrix products.
        """
        h, prefix = self.codes(x), None
        if condition.text is not None and not self._reads_text:
            raise UserError("this model reads classes, got texts: give labels")
        if span.start == 0:
            source = self.source(condition if self._reads_text else condition.labels)
            if isinstance(source, texts.Prefix):
                prefix = source._replace(x=self.token_drop(source.x).float())
                source = source.x[:, -1]  # any: nobody sees it
            h = torch.cat([source[:, None].to(h.dtype), h[:, 1:]], dim=1)
        return self.token_drop(h).float(), prefix

    @property
    def _reads_text(self) -> bool:
        return isinstance(self.source, texts.Text)

    def _bias(self, condition: Condition, span: Span) -> Tensor | None:
        """Return which keys count, or by how much; None: all up to a position, alike."""
        back = span.back()
        if back is None and span.start and len(span) > 1:  # once, not in every block
            back = behind(len(span), span.positions.stop, condition.labels.device)
        if not self._reads_text:
            return back
        valid = texts.shares(condition, len(self.source.null))
        dtype, device = self.head.linear.weight.dtype, valid.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return texts.scores(valid, len(span), span.positions.stop, dtype, back)

    def _turn(self, span: Span, h: Tensor) -> Turn:
        if h.device not in self._turns:
            channels = h.shape[-1] // self.blocks[0].attention.heads
            grid = self.schedule.grids[0]
            self._turns[h.device] = raster_turn(grid, channels, self.base, h.device)
        cos, sin = self._turns[h.device]
        return span.rows(cos), span.rows(sin)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two halves of the blocks, for any number of positions.

        Args:
            args, kwargs: for `torch.compile`.
        """
        compile_methods(self.blocks, ("before", "after"), *args, **kwargs)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw new weights: N(0, 0.02), and zeros for the head (section 5)."""
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
        nn.init.zeros_(self.head.linear.weight)


def _source(
    classes: int | None, null: bool, text: int | None, length: int, width: int
) -> nn.Module:
    """Return what makes of a condition what is read first."""
    if classes is not None and text is None:
        return Classes(classes, width, null=null)
    if text is not None and classes is None:
        return texts.Text(text, length, width)
    raise ValueError("a raster model is conditioned on classes or on texts: give one")


def gated_width(width: int, multiple: int = 256, factor: float | None = None) -> int:
    """Return the published middle of a gated perceptron: 8 / 3 of the width, rounded up.

    Args:
        width: D.
        multiple: what it is rounded up to a multiple of.
        factor: what it is multiplied by before.
    """
    hidden = int(8 * width / 3)
    if factor is not None:
        hidden = int(factor * hidden)
    return -(-hidden // multiple) * multiple
