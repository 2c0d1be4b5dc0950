"""The contract of the models' floor: `Backbone`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from var.cache.base import Cache, CacheKind
from var.condition import Condition
from var.heads.base import Head
from var.schedule import Schedule, Span


class Backbone(Protocol):
    """A transformer over the groups of a schedule: an `nn.Module`, head included."""

    @property
    def head(self) -> Head:
        """What turns the backbone's features into predictions."""
        ...

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """All its repeated blocks, the head's included: most of its weights and of its work.

        To be recomputed (`var.nn.recompute`) or distributed one by one. A block whose weights are
        used by other methods than `forward` names them in an attribute `entries`.
        """
        ...

    def __call__(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return features for the head, (R, L, D).

        Args:
            x: (R, L, C) what a canvas shows of the groups of `span`.
            span: the groups to predict; without a cache they begin with group 0.
            condition: of each of the R rows.
            cache: what was read before; the caller advances it.
        """
        ...

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        """Return an empty cache.

        Args:
            kind: what makes it; by default what suits this backbone.
            groups: how many of the first groups will be read; None: all of them.
        """
        ...


def check_span(span: Span, schedule: Schedule, cache: Cache | None) -> None:
    """Check that a model built for a schedule is to read the groups that come next.

    Raises:
        ValueError: the span is of another schedule, or does not begin where the cache ends.
    """
    if span.schedule != schedule:
        raise ValueError(
            f"this model was built for the schedule {schedule}, the span belongs to {span.schedule}"
        )
    seen = cache.seen if cache is not None else 0
    if not span.follows(seen):
        raise ValueError(f"the span starts at group {span.start}, the model has read {seen}")
