"""The static cache: room for all groups that will be read, allocated once, written in place.

States too. For inference. Reused from one generation to the next, so that addresses stay put for
CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from var.cache.base import Place, Plain, State, Step, Unkeyed
from var.schedule import Span


class StaticMemory(Unkeyed):
    """Keys and values of one layer in one tensor (2, R, N, L of the groups it is for, d).

    Or its state, in one place.

    Args:
        groups: see `Static`.
    """

    def __init__(self, groups: int | None) -> None:
        super().__init__(groups)
        self._room: Tensor | None = None
        self._stale: dict[Callable[[Tensor], Tensor], Tensor] = {}

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Write `k` and `v` where `span` lies; return views of everything up to its end.

        The place of a group is given by its schedule, so forgetting groups costs nothing.
        """
        _check_inference(k)
        room, length = self._room, span.schedule[: self._groups].positions.stop
        if room is None or not _fits(room[:, : self._rows], k, length):
            if span.start:
                raise ValueError("the rows or the type of the keys changed since group 0")
            self._room = None  # before there is a new one: never room for both
            room = self._room = _allocate(k, length)
        keys, values = room[:, : len(k)]
        span.store(keys, k)
        span.store(values, v)
        return span.seen(keys), span.seen(values)

    def recur(self, step: Step, span: Span) -> Tensor:
        """Return the output (R, L, D) of a recurrence; write the state where the last one was."""
        out, state = step(self._carried(span), self._goes_on(span))
        _check_inference(out)
        if state is not None:
            self._write(state)
        return out

    def _write(self, state: State) -> None:
        rooms = self._state
        if rooms is None or (self._rows is None and [*map(_kind, rooms)] != [*map(_kind, state)]):
            with torch.inference_mode(False):  # to be written to again, as the room
                self._state = tuple(t.clone() for t in state)
        else:
            for room, tensor in zip(rooms, state, strict=True):
                room[: self._rows].copy_(tensor)

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`, computed the first time and written where the last one was."""
        if make not in self._known:
            made, old = make(condition), self._stale.pop(make, None)
            if old is None or _kind(old) != _kind(made):
                with torch.inference_mode(False):  # to be written to again, as the room
                    self._known[make] = made.clone()
            else:
                self._known[make] = old.copy_(made)
        return self._known[make][: self._rows]

    def rewind(self, positions: int) -> None:
        """Nothing to do but to forget the condition at 0: later writes replace what is stale."""
        if not positions:
            self._stale |= self._known
            room = self._state
            self.forget()
            self._state = room

    def place(self) -> Place:
        """Return the addresses and shapes of everything that is held, stale or not."""
        held = {**self._stale, **self._known}.values()
        return tuple((t.data_ptr(), *t.shape) for t in (*self.tensors(), *held))

    def tensors(self) -> Sequence[Tensor]:
        """Return the room of keys and values, or of the state."""
        return self._state or (() if self._room is None else (self._room,))

    def release(self) -> None:
        """Forget everything, and give the room back."""
        self.rewind(0)
        self._stale.clear()
        self._room = self._state = None


def _check_inference(tensor: Tensor) -> None:
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise RuntimeError("the static cache is for inference only; under autograd take Dense")


def _fits(room: Tensor, k: Tensor, length: int) -> bool:
    shape = (2, *k.shape[:2], length, k.shape[-1])
    return room.shape == shape and room.dtype == k.dtype and room.device == k.device


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _allocate(k: Tensor, length: int) -> Tensor:
    # Outside inference mode: the room may be written to again in a later, ordinary call.
    with torch.inference_mode(False):
        rows, heads, _, channels = k.shape
        # Zeros: what is not written yet may be read where it does not count, but must be numbers.
        return torch.zeros((2, rows, heads, length, channels), dtype=k.dtype, device=k.device)


class Static(Plain):
    """A cache with room for all groups that will be read.

    Args:
        layers: number of layers of the model.
        groups: how many of the first groups will be read; None: the whole schedule.
        recurrent: layers hand on a state.
    """

    def __init__(self, layers: int, groups: int | None = None, *, recurrent: bool = False) -> None:
        super().__init__([StaticMemory(groups) for _ in range(layers)], recurrent=recurrent)

    def place(self) -> Place:
        """Return the addresses and shapes of rooms and constants."""
        return tuple(each for memory in self.layers for each in memory.place())
