"""The contracts of the caches' floor, `Memory` and `Cache`, and what all plain caches share.

A memory is what one layer remembers of the groups read so far; a cache is a memory per layer. A
cache belongs to one batch and one condition until it is rewound to 0. What layers remember are keys
and values, of attention, or a state that sums up all groups so far, of a recurrence. Letters: R
rows, N heads, L positions of a span, S positions attended to, d channels of a head, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from var.errors import UserError
from var.schedule import Schedule, Span

# What a recurrence hands on from group to group: tensors (R, ...), of the same shapes always.
State = tuple[Tensor, ...]
# Takes a recurrence on, from a state (None: from the beginning): returns its output (R, L, D) and,
# if that is asked for, the state after.
Step = Callable[[Any, bool], tuple[Tensor, State | None]]
# Address and shape of everything that is held.
Place = tuple[tuple[int, ...], ...]


class Memory(Protocol):
    """What one layer remembers."""

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Return keys and values to attend to now, (R, N, S, d), those of `span` at the end.

        Args:
            q: (R, N, L, d) queries of the span, for memories that choose what to keep by them;
                scaled, so that q · k is what the softmax gets.
            k: (R, N, L, d) its keys.
            v: (R, N, L, d) its values.
            span: the groups that they belong to.
        """
        ...

    def recur(self, step: Step, span: Span) -> Tensor:
        """Return the output (R, L, D) of a recurrence over `span`; remember the state after it.

        Args:
            step: is given the state that was remembered, None at group 0, and whether that after
                `span` will be asked for.
            span: the groups that it takes the recurrence through.
        """
        ...

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`, computed the first time and remembered."""
        ...

    def rewind(self, positions: int) -> None:
        """Forget all but the first `positions` positions; 0 forgets everything, states too."""
        ...

    def narrow(self, rows: int) -> None:
        """Forget all but the first `rows` rows, until it is rewound to 0."""
        ...

    def tensors(self) -> Sequence[Tensor]:
        """Return keys, values and states that are held now, for whoever counts bytes."""
        ...

    def release(self) -> None:
        """Forget everything, and give its room back."""
        ...


class Cache(Protocol):
    """What a model remembers of the groups it has read.

    Attributes:
        seen: number of groups read.
        recurrent: whether layers remember states instead of keys.
    """

    seen: int
    recurrent: bool

    @property
    def rewinds(self) -> bool:
        """Whether groups can be forgotten one by one."""
        ...

    @property
    def layers(self) -> Sequence[Memory]:
        """The memory of each layer."""
        ...

    def place(self) -> Place | None:
        """Return where in memory everything is held; None if that changes from step to step."""
        ...

    def advance(self, span: Span) -> None:
        """Note that every layer has read `span`."""
        ...

    def rewind(self, groups: int) -> None:
        """Forget all but the first `groups` groups; nothing happens if no more were read.

        Every cache can be rewound to 0, and then serves another batch and condition.
        """
        ...

    def narrow(self, rows: int) -> None:
        """Forget all but the first `rows` rows, until it is rewound to 0: the others are done."""
        ...

    def release(self) -> None:
        """Forget everything, and give its room back."""
        ...


class CacheKind(Protocol):
    """What makes a cache."""

    def __call__(self, layers: int, groups: int | None = None, *, recurrent: bool = False) -> Cache:
        """Return an empty cache.

        Args:
            layers: number of memories.
            groups: how many of the first groups will be read; None: all of them.
            recurrent: layers hand on a state, which cannot be rewound but to 0.

        Raises:
            UserError: it is about keys, and there will be none.
        """
        ...


def owned(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it is part of a larger one, which it would keep alive."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def check_keys(recurrent: bool, what: str, instead: str) -> None:
    """Check that a cache that is about keys is asked for by a model that has any.

    Args:
        recurrent: whether the model's layers remember states.
        what: names the cache.
        instead: what to do.

    Raises:
        UserError: they do.
    """
    if recurrent:
        raise UserError(
            f"{what} is about keys, and an M-VAR remembers none, but a state of constant size: "
            f"{instead}"
        )


def nbytes(*caches: Cache) -> int:
    """Return the bytes that caches hold: whole storages, each counted once."""
    tensors = (t for cache in caches for memory in cache.layers for t in memory.tensors())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Layered:
    """What all caches with one memory per layer share.

    Args:
        layers: one memory per layer.
        recurrent: whether they remember states.
    """

    def __init__(self, layers: Sequence[Memory], *, recurrent: bool = False) -> None:
        self.layers, self.recurrent = layers, recurrent
        self.seen = 0
        self._schedule: Schedule | None = None
        self._rows: int | None = None

    def advance(self, span: Span) -> None:
        """Note that every layer has read `span`, which must begin where the last one ended."""
        if span.start != self.seen:
            raise ValueError(f"read {self.seen} groups so far, the span starts at {span.start}")
        self.seen, self._schedule = span.stop, span.schedule
        if not span.start:
            self._rows = None  # whoever reads anew may have others

    def narrow(self, rows: int) -> None:
        """Forget all but the first `rows` rows, until it is rewound to 0."""
        if self.seen and rows != self._rows:
            for memory in self.layers:
                memory.narrow(rows)
            self._rows = rows

    def place(self) -> Place | None:
        """Return None: what is held comes and goes."""
        return None

    def release(self) -> None:
        """Forget everything, and give its room back."""
        for memory in self.layers:
            memory.release()
        self.seen = 0


class Plain(Layered):
    """A cache of exact memories: keeps every key and value, and rewinds to any group.

    With states, it rewinds to 0 only: they do not tell what they were before.
    """

    @property
    def rewinds(self) -> bool:
        """Whether groups can be forgotten one by one."""
        return not self.recurrent

    def rewind(self, groups: int) -> None:
        """Forget all but the first `groups` groups; nothing happens if no more were read.

        Raises:
            ValueError: only some of the groups that a state sums up would have to be forgotten.
        """
        if groups and groups >= self.seen:
            return
        if groups and self.recurrent:
            raise ValueError(
                f"a state that sums up {self.seen} groups cannot go back to {groups}: rewind to 0"
            )
        positions = self._schedule.starts[groups] if self._schedule else 0
        for memory in self.layers:
            memory.rewind(positions)
        self.seen = groups


class Unkeyed:
    """The half of a memory that is not about keys.

    States, and results that depend on the condition only: in VAR the modulation of a block is a
    third of its weights and the same at every scale.

    Args:
        groups: how many of the first groups will be read; None: the whole schedule.
    """

    def __init__(self, groups: int | None = None) -> None:
        self._groups = groups
        self._state: State | None = None
        self._known: dict[Callable[[Tensor], Tensor], Tensor] = {}
        self._rows: int | None = None  # of the results, that still count

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`, computed the first time and remembered."""
        if make not in self._known:
            self._known[make] = make(condition)
        return self._known[make][: self._rows]

    def recur(self, step: Step, span: Span) -> Tensor:
        """Return the output (R, L, D) of a recurrence over `span`; remember the state after it."""
        out, state = step(self._carried(span), self._goes_on(span))
        self._state = None if state is None else tuple(map(owned, state))
        return out

    def narrow(self, rows: int) -> None:
        """Return the first `rows` rows of results only, until they are forgotten."""
        self._rows = rows

    def forget(self) -> None:
        """Forget the results and the state: the next condition is another one."""
        self._known.clear()
        self._rows = self._state = None

    def _goes_on(self, span: Span) -> bool:
        """Return whether groups after `span` will be read."""
        return span.stop < self._limit(span)

    def _limit(self, span: Span) -> int:
        return len(span.schedule) if self._groups is None else self._groups

    def _carried(self, span: Span) -> State | None:
        """Return the state that `span` begins with, None at group 0.

        Raises:
            ValueError: nothing was remembered of the groups before.
        """
        if not span.start:
            return None
        if self._state is None or span.start >= self._limit(span):
            raise ValueError(
                f"no state of the groups before {span.start}: the cache is for "
                f"{self._limit(span)} groups"
            )
        rows = len(self._state[0]) if self._rows is None else self._rows
        # No view without need: compiled code has an eye on what views are of.
        return tuple(t if rows == len(t) else t[:rows] for t in self._state)
