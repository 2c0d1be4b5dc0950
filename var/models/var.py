"""The VAR backbone: every scale attends to itself and to all coarser ones (arXiv 2404.02905).

Section numbers refer to the published system. Letters: R rows, L positions of a span, D width.
"""

from __future__ import annotations

from torch import Tensor

from var.cache.base import Memory
from var.models import nextscale
from var.schedule import Span


class Block(nextscale.Block):
    """`x += g1 attention(n1(x))`, `x += g2 mlp(n2(x))`, modulated by a condition (section 3.3)."""

    BRANCHES = 2

    def forward(self, x: Tensor, condition: Tensor, span: Span, memory: Memory) -> Tensor:
        """Return the stream (R, L, D) after the block."""
        parts = memory.once(self.modulation, condition)
        q, k, v = self.before(x, parts)
        keys, values = memory.extend(q, k, v, span)
        out = self.attend(q, keys, values, span, drop=self.attention.dropped)
        return self.after(x, parts, out)

    def before(self, x: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values (R, N, L, d) for a modulation (R, 6, D)."""
        _, _, scale, _, shift, _ = parts.unbind(dim=1)
        return self.attention.split(self.norm(x, scale, shift))

    def after(self, x: Tensor, parts: Tensor, out: Tensor) -> Tensor:
        """Return the stream (R, L, D) after what was attended to (R, L, D), and after the mlp."""
        gate1, gate2, _, scale, _, shift = parts.unbind(dim=1)
        x = self.add(x, self.attention.project(out), gate1)
        return self.add(x, self.mlp(self.norm(x, scale, shift)), gate2)


class VAR(nextscale.NextScale):
    """The next-scale prediction transformer as it came first.

    Published sizes are `width=64 * depth, heads=depth` at depth 16, 20, 24, 30 and 36.
    """

    BLOCK = Block
