"""The contracts of the caches' floor, `Memory` and `Cache`, and what all plain caches share.

A memory is what one layer remembers of the groups read so far; a cache is a memory per layer. A
cache belongs to one batch and one condition until it is rewound to 0. Letters: R rows, N heads, L
positions of a span, S positions attended to, d channels of a head, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from var.schedule import Schedule, Span

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

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`, computed the first time and remembered."""
        ...

    def rewind(self, positions: int) -> None:
        """Forget all but the first `positions` positions; 0 forgets everything."""
        ...

    def narrow(self, rows: int) -> None:
        """Forget all but the first `rows` rows, until it is rewound to 0."""
        ...

    def tensors(self) -> Sequence[Tensor]:
        """Return the keys and values that are held now, for whoever counts bytes."""
        ...

    def release(self) -> None:
        """Forget everything, and give its room back."""
        ...


class Cache(Protocol):
    """What a model remembers of the groups it has read.

    Attributes:
        seen: number of groups read.
    """

    seen: int

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


# Makes a cache for a number of layers, of which the first so many groups will be read (None: all).
CacheKind = Callable[[int, int | None], Cache]


def nbytes(*caches: Cache) -> int:
    """Return the bytes that caches hold: whole storages, each counted once."""
    tensors = (t for cache in caches for memory in cache.layers for t in memory.tensors())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Layered:
    """What all caches with one memory per layer share.

    Args:
        layers: one memory per layer.
    """

    def __init__(self, layers: Sequence[Memory]) -> None:
        self.layers = layers
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
    """A cache of exact memories: keeps every key and value, and rewinds to any group."""

    rewinds = True

    def rewind(self, groups: int) -> None:
        """Forget all but the first `groups` groups; nothing happens if no more were read."""
        if groups and groups >= self.seen:
            return
        positions = self._schedule.starts[groups] if self._schedule else 0
        for memory in self.layers:
            memory.rewind(positions)
        self.seen = groups


class Constants:
    """The `once` half of a memory: results that depend on the condition only.

    In VAR the modulation of a block is a third of its weights and the same at every scale.
    """

    def __init__(self) -> None:
        self._known: dict[Callable[[Tensor], Tensor], Tensor] = {}
        self._rows: int | None = None  # of the results, that still count

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`, computed the first time and remembered."""
        if make not in self._known:
            self._known[make] = make(condition)
        return self._known[make][: self._rows]

    def narrow(self, rows: int) -> None:
        """Return the first `rows` rows of results only, until they are forgotten."""
        self._rows = rows

    def forget(self) -> None:
        """Forget the results: the next condition is another one."""
        self._known.clear()
        self._rows = None
