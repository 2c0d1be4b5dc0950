"""Schedules and spans: in which groups, and in which order, an image is decided.

The ground floor of the house: pure geometry that every other piece takes as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True)
class Schedule:
    """The groups of tokens that make up an image, in the order in which they are decided.

    Attributes:
        grids: (h, w) of the token grid on which group k lives.
        cells: the cells of that grid which group k decides, row-major; None means all of them.

    >>> Schedule.scales([1, 2, (3, 4)]).sizes
    (1, 4, 12)
    """

    grids: tuple[Grid, ...]
    cells: tuple[tuple[int, ...] | None, ...]

    def __post_init__(self) -> None:
        if not self.grids or any(h < 1 or w < 1 for h, w in self.grids):
            raise ValueError(f"a schedule needs at least one grid of positive size: {self.grids}")
        if len(self.cells) != len(self.grids):
            raise ValueError(f"{len(self.grids)} grids but cells for {len(self.cells)} groups")

    @classmethod
    def scales(cls, ladder: Sequence[int | Sequence[int]]) -> Schedule:
        """Return the next-scale schedule of a ladder of sides or (h, w) pairs (VAR, section 1)."""
        grids = tuple((s, s) if isinstance(s, int) else (int(s[0]), int(s[1])) for s in ladder)
        return cls(grids=grids, cells=(None,) * len(grids))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of positions in each group."""
        return tuple(
            h * w if cells is None else len(cells)
            for (h, w), cells in zip(self.grids, self.cells, strict=True)
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First position of each group, and the total length as a last entry (K + 1 numbers)."""
        return (0, *accumulate(self.sizes))

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, groups: slice) -> Span:
        start, stop, step = groups.indices(len(self))
        if step != 1 or stop <= start:
            raise ValueError(f"a span is one or more consecutive groups: {groups} of {len(self)}")
        return Span(self, start, stop)


@dataclass(frozen=True)
class Span:
    """Groups `start..stop` of a schedule, laid end to end, L positions in all."""

    schedule: Schedule
    start: int
    stop: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of positions in each group of the span."""
        return self.schedule.sizes[self.start : self.stop]

    @property
    def grids(self) -> tuple[Grid, ...]:
        """(h, w) of each group of the span."""
        return self.schedule.grids[self.start : self.stop]

    @property
    def positions(self) -> slice:
        """Where the span lies in the whole sequence."""
        return slice(self.schedule.starts[self.start], self.schedule.starts[self.stop])

    def __len__(self) -> int:
        return self.positions.stop - self.positions.start

    def tail(self, start: int) -> Span:
        """Return the part of the span from group `start` on."""
        return self.schedule[max(start, self.start) : self.stop]

    def levels(self, device: torch.device | str | None = None) -> Tensor:
        """Return the group of each position, (L,) int64."""
        return _levels(self, torch.device(device or "cpu"))

    def mask(
        self, past: int = 0, own: bool = False, device: torch.device | str | None = None
    ) -> Tensor | None:
        """Return who may attend to whom, (L, past + L) bool, or None if everyone to everyone.

        A position sees all `past` keys, its own group and the groups before it; with `own` its
        own group only, and no past.
        """
        if self.stop - self.start == 1 and not (own and past):
            return None
        return _mask(self, past, own, torch.device(device or "cpu"))


# Geometry is asked for at every layer and step: computed once per device, and outside inference
# mode, so that a tensor first used while sampling can be saved for a later backward pass.
@lru_cache(maxsize=256)
def _levels(span: Span, device: torch.device) -> Tensor:
    # From a list: `repeat_interleave` has a size that a compiler cannot know.
    levels = [span.start + k for k, size in enumerate(span.sizes) for _ in range(size)]
    with torch.inference_mode(False):
        return torch.tensor(levels, device=device)


@lru_cache(maxsize=64)
def _mask(span: Span, past: int, own: bool, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        levels = _levels(span, device)
        compare = torch.eq if own else torch.ge
        inside = compare(levels[:, None], levels[None, :])
        return torch.cat([inside.new_full((len(span), past), not own), inside], dim=1)
