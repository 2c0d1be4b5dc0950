"""The M-VAR backbone: attention inside scales, Mamba across them (arXiv 2411.10433).

What a scale learns from coarser ones comes through Mamba, so that what is remembered does not grow
with the number of scales: there are no keys. Letters: R rows, L positions of a span, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from var.cache.base import Cache, CacheKind, Memory
from var.cache.static import Static
from var.models import nextscale
from var.nn.mamba import Mamba2, State
from var.schedule import Span


class Block(nextscale.Block):
    """`x += g1 attention(n1(x))`, `x += g2 mamba(n2(x))`, `x += g3 mlp(n3(x))` (section 3).

    Attention is inside each scale, Mamba goes through all of them, row by row, coarse to fine.
    """

    BRANCHES = 3

    def __init__(self, width: int, heads: int, **settings: Any) -> None:
        super().__init__(width, heads, **settings)
        self.mamba = Mamba2(width)

    def forward(self, x: Tensor, condition: Tensor, span: Span, memory: Memory) -> Tensor:
        """Return the stream (R, L, D) after the block."""
        parts = memory.once(self.modulation, condition)
        q, k, v = self.before(x, parts)
        own = self.attend(q, k, v, span, own=True, drop=self.attention.dropped)
        return memory.recur(partial(self.after, x, parts, own), span)

    def before(self, x: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values (R, N, L, d) for a modulation (R, 9, D)."""
        _, _, _, scale, _, _, shift, _, _ = parts.unbind(dim=1)
        return self.attention.split(self.norm(x, scale, shift))

    def after(
        self,
        x: Tensor,
        parts: Tensor,
        own: Tensor,
        state: tuple[Tensor, Tensor] | None,
        keep: bool,
    ) -> tuple[Tensor, State | None]:
        """Return the stream (R, L, D) after the block, and Mamba's state, if it is to be kept.

        Args:
            x: (R, L, D) the stream before the block.
            parts: (R, 9, D) its modulation.
            own: (R, L, D) what the positions of each scale made of each other.
            state: Mamba's, before these scales.
            keep: whether that after them is asked for.
        """
        gate1, gate2, gate3, _, scale2, scale3, _, shift2, shift3 = parts.unbind(dim=1)
        x = self.add(x, self.attention.project(own), gate1)
        h, state = self.mamba(self.norm(x, scale2, shift2), state, keep=keep)
        x = self.add(x, h, gate2)
        return self.add(x, self.mlp(self.norm(x, scale3, shift3)), gate3), state


class MVAR(nextscale.NextScale):
    """The next-scale prediction transformer that remembers a state instead of keys.

    Published sizes are `width=64 * depth, heads=depth` at depth 12, 16, 20, 24 and 32, the last two
    with `l2_norm`. The width is a multiple of 32.
    """

    BLOCK = Block

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache of the given kind, static by default, for the first `groups`.

        Raises:
            UserError: that kind is about keys.
        """
        return (kind or Static)(len(self.blocks), groups, recurrent=True)
