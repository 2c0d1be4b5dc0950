"""The static cache: room for the whole schedule, allocated once and written in place.

For inference. Reused from one generation to the next, so that addresses stay put for CUDA graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from var.cache.base import Constants, Plain
from var.schedule import Span


class StaticMemory(Constants):
    """Keys and values of one layer in one tensor (2, R, N, L of the whole schedule, d)."""

    def __init__(self) -> None:
        super().__init__()
        self._room: Tensor | None = None

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Write `k` and `v` where `span` lies; return views of everything up to its end.

        The place of a group is given by its schedule, so forgetting groups costs nothing.
        """
        if torch.is_grad_enabled() and k.requires_grad:
            raise RuntimeError("the static cache is for inference only; under autograd take Dense")
        room = self._room
        if room is None or not _fits(room, k, span):
            if span.start:
                raise ValueError("the rows or the type of the keys changed since group 0")
            room = self._room = _allocate(k, span)
        here = span.positions
        room[0, :, :, here] = k
        room[1, :, :, here] = v
        return room[0, :, :, : here.stop], room[1, :, :, : here.stop]

    def rewind(self, positions: int) -> None:
        """Nothing to do but to forget the condition at 0: later writes replace what is stale."""
        if not positions:
            self.forget()


def _fits(room: Tensor, k: Tensor, span: Span) -> bool:
    shape = (2, *k.shape[:2], span.schedule.starts[-1], k.shape[-1])
    return room.shape == shape and room.dtype == k.dtype and room.device == k.device


def _allocate(k: Tensor, span: Span) -> Tensor:
    # Outside inference mode: the room may be written to again in a later, ordinary call.
    with torch.inference_mode(False):
        rows, heads, _, channels = k.shape
        shape = (2, rows, heads, span.schedule.starts[-1], channels)
        return torch.empty(shape, dtype=k.dtype, device=k.device)


class Static(Plain):
    """A cache with room for the whole schedule.

    Args:
        layers: number of layers of the model.
    """

    def __init__(self, layers: int) -> None:
        super().__init__([StaticMemory() for _ in range(layers)])
