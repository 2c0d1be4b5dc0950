"""The naive row of M-VAR: no state is handed on, Mamba runs over everything again at each scale.

As published: each block keeps what came out of its attention, of all scales so far, and norms,
modulates and mixes all of it for the sake of the last scale. Letters: R rows, L positions of a
span, S positions so far, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from var.cache.base import Cache, CacheKind, Memory, Plain
from var.cache.none import NoMemory
from var.condition import Condition
from var.models.mvar import MVAR, Block
from var.nn.attention import attend
from var.schedule import Span


class NaiveStream(NoMemory):
    """The stream of one layer after its attention, at all positions so far (R, S, D)."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def append(self, x: Tensor, span: Span) -> Tensor:
        """Return everything remembered, followed by `x` (R, L, D); remember that too."""
        if self._kept is not None and span.start:
            x = torch.cat([self._kept, x], dim=1)
        self._kept = x
        return x

    def rewind(self, positions: int) -> None:
        """Keep the first `positions` positions; 0 forgets everything."""
        self._kept = self._kept[:, :positions] if self._kept is not None and positions else None

    def narrow(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        if self._kept is not None:
            self._kept = self._kept[:rows]

    def tensors(self) -> Sequence[Tensor]:
        """Return the stream held."""
        return () if self._kept is None else (self._kept,)

    def release(self) -> None:
        """Forget everything."""
        self.rewind(0)


class NaiveStreams(Plain):
    """A cache of streams; the arguments are those of `Dense`. There is no state: it can rewind."""

    def __init__(self, layers: int, groups: int | None = None, *, recurrent: bool = False) -> None:
        super().__init__([NaiveStream() for _ in range(layers)])


class NaiveMixing(nn.Module):
    """A block whose Mamba begins at the first position whenever it runs.

    Args:
        block: whose weights it uses.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, condition: Tensor, span: Span, memory: Memory) -> Tensor:
        """Return the stream (R, L, D) after the block, which remembers in a `NaiveStream`."""
        block = self.block
        parts = block.modulation(condition)
        gate1, gate2, gate3, _, scale2, scale3, _, shift2, shift3 = parts.unbind(dim=1)
        q, k, v = block.before(x, parts)
        x = block.add(x, block.attention.project(attend(q, k, v, span, own=True)), gate1)
        kept = cast(NaiveStream, memory).append(x, span)
        mixed, _ = block.mamba(block.norm(kept, scale2, shift2), keep=False)
        x = block.add(x, mixed[:, -len(span) :], gate2)
        return block.add(x, block.mlp(block.norm(x, scale3, shift3)), gate3)


class NaiveMVAR(nn.Module):
    """An M-VAR of other blocks.

    Args:
        model: whose weights it uses, and whose blocks it replaces.
    """

    def __init__(self, model: MVAR) -> None:
        super().__init__()
        self.model = model
        model.blocks = nn.ModuleList(NaiveMixing(cast(Block, block)) for block in model.blocks)

    @property
    def head(self) -> nn.Module:
        """The model's head."""
        return self.model.head

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache of streams, whatever is asked for."""
        return self.model.new_cache(NaiveStreams, groups)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D); the cache is one of streams."""
        return self.model(x, span, condition, cache)
