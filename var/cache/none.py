"""No cache: training and teacher forcing read all groups at once and remember nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from var.cache.base import Step
from var.schedule import Span


class NoMemory:
    """A memory that returns what it is given."""

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Return `k` and `v`."""
        return k, v

    def recur(self, step: Step, span: Span) -> Tensor:
        """Return the output of a recurrence from the beginning."""
        return step(None, False)[0]

    def once(self, make: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        """Return `make(condition)`."""
        return make(condition)

    def rewind(self, positions: int) -> None:
        """Nothing to forget."""

    def narrow(self, rows: int) -> None:
        """Nothing to forget."""

    def tensors(self) -> Sequence[Tensor]:
        """Return nothing."""
        return ()

    def release(self) -> None:
        """Nothing to give back."""
