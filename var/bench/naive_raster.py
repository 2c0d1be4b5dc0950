"""The naive row of next-token models: their steps as published code takes them (LlamaGen).

A text takes as many places as it has features. There is room for all positions from the first step
on, every step attends to all of it under a mask for each row, keys and values that several heads
share are copied for each of them, and the null half is computed to the end, guided or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.cache.base import Cache, CacheKind, Memory, Plain, Unkeyed
from var.cache.none import NoMemory
from var.condition import Condition
from var.models.raster import Block, Raster
from var.nn.rotary import Turn, raster_turn
from var.schedule import Span

_MULTIPLE = 8  # of the positions that there is room for


class NaiveRoom(Unkeyed):
    """Keys and values of one layer for all positions, (R, n, S, d) each, zeros where none are."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Tensor, Tensor] | None = None
        self._lead = 0  # places of the condition, but for one

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Write `k` and `v`; return the whole room."""
        if self._kept is None or not span.start:
            self._lead = k.shape[2] - len(span)
            length = self._lead + span.schedule.starts[-1]
            shape = (*k.shape[:2], -(-length // _MULTIPLE) * _MULTIPLE, k.shape[3])
            self._kept = k.new_zeros(shape), v.new_zeros(shape)
        stop = self._lead + span.positions.stop
        for room, new in zip(self._kept, (k, v), strict=True):
            room[:, :, stop - new.shape[2] : stop] = new
        return self._kept

    def rewind(self, positions: int) -> None:
        """Forget everything at 0; what is stale is masked."""
        if not positions:
            self._kept = None

    def narrow(self, rows: int) -> None:
        """Go on with all rows."""

    def tensors(self) -> Sequence[Tensor]:
        """Return the room."""
        return self._kept or ()

    def release(self) -> None:
        """Forget everything."""
        self.rewind(0)


class NaiveRooms(Plain):
    """A cache of rooms; the arguments are those of `Dense`."""

    def __init__(self, layers: int, groups: int | None = None, *, recurrent: bool = False) -> None:
        super().__init__([NaiveRoom() for _ in range(layers)], recurrent=recurrent)


class NaiveRaster(nn.Module):
    """A next-token model with another forward pass.

    Args:
        model: whose weights it uses.
    """

    def __init__(self, model: Raster) -> None:
        super().__init__()
        self.model = model
        self._mask: Tensor | None = None

    @property
    def head(self) -> nn.Module:
        """The model's head."""
        return self.model.head

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache with room for everything, whatever is asked for."""
        return self.model.new_cache(NaiveRooms, groups)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D)."""
        images = len(x)
        if span.start and self._mask is not None and images < len(self._mask):  # guidance is over
            x, condition = torch.cat([x, x]), condition.spread(2)
        h = self.model.codes(x)
        if not span.start:
            source = self._source(condition)
            h = torch.cat([source, h[:, 1:]], dim=1)
            self._mask = mask(condition, source.shape[1], span)
        assert self._mask is not None
        lead = self._mask.shape[-1] - span.schedule.starts[-1]
        here = slice(span.start and span.start + lead, span.stop + lead)
        turn = self._turn(lead, here, h)
        layers = cache.layers if cache is not None else [NoMemory()] * len(self.model.blocks)
        for block, memory in zip(self.model.blocks, layers, strict=True):
            h = self._block(block, h, turn, span, memory, self._mask[:, :, here])
        return self.model.norm(h)[:images, -len(span) :]

    def _block(
        self, block: Block, h: Tensor, turn: Turn, span: Span, memory: Memory, seen: Tensor
    ) -> Tensor:
        """Return the stream (R, L, D) after a block."""
        attention = block.attention
        q, k, v = attention.split(block.attention_norm(h), turn)
        keys, values = memory.extend(q, k, v, span)
        times = q.shape[1] // k.shape[1]
        keys, values = (t.repeat_interleave(times, dim=1) for t in (keys, values))
        seen = F.pad(seen, (0, max(0, keys.shape[2] - seen.shape[3])))[..., : keys.shape[2]]
        out = F.scaled_dot_product_attention(q, keys, values, seen, scale=1.0)
        h = h + attention.mix(rearrange(out, "R N L d -> R L (N d)"))
        return h + block.mlp(block.mlp_norm(h))

    def _source(self, condition: Condition) -> Tensor:
        """Return what stands before the first token, (R, T, D)."""
        if condition.text is None:
            return self.model.source(condition.labels)[:, None]
        return self.model.source(condition).x

    def _turn(self, lead: int, here: slice, h: Tensor) -> Turn:
        grid, channels = (
            self.model.schedule.grids[0],
            h.shape[-1] // self.model.blocks[0].attention.heads,
        )
        turn = raster_turn(grid, channels, self.model.base, h.device)
        cos, sin = (F.pad(t, (0, 0, lead, 0))[here] for t in turn)  # 0 before the last feature too
        return cos, sin


def mask(condition: Condition, features: int, span: Span) -> Tensor:
    """Return who sees whom of all features and tokens, (R, 1, S, S) bool."""
    length = features + span.schedule.starts[-1] - 1
    device = condition.labels.device
    back = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    seen = back.repeat(len(condition), 1, 1, 1)
    if condition.valid is not None:
        seen[:, :, :, :features] &= condition.valid[:, None, None]
    return seen | torch.eye(length, dtype=torch.bool, device=device)
