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


# Compared by hand: schedules of a thousand groups are keys of caches that are asked at every step.
@dataclass(frozen=True, eq=False)
class Schedule:
    """The groups of tokens that make up an image, in the order in which they are decided.

    Attributes:
        grids: (h, w) of the token grid on which group k lives.
        cells: the cells of that grid which group k decides, row-major; None means all of them.

    >>> Schedule.scales([1, 2, (3, 4)]).sizes
    (1, 4, 12)
    >>> Schedule.raster((2, 3)).sizes
    (1, 1, 1, 1, 1, 1)
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

    @classmethod
    def raster(cls, grid: int | Sequence[int]) -> Schedule:
        """Return the schedule of single cells, row by row, of a side or an (h, w) pair."""
        h, w = (grid, grid) if isinstance(grid, int) else (int(grid[0]), int(grid[1]))
        return cls(grids=((h, w),) * (h * w), cells=tuple((cell,) for cell in range(h * w)))

    @cached_property
    def is_raster(self) -> bool:
        """Whether the groups are the cells of one grid, row by row."""
        grid = self.grids[0]
        return self.cells[0] is not None and self == Schedule.raster(grid)

    def __str__(self) -> str:
        """Return what messages say of it: a raster may have a thousand equal grids."""
        if self.is_raster:
            return f"the raster of {self.grids[0]}"
        return f"the grids {list(self.grids)}"

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Schedule):
            return self is other
        return self.grids == other.grids and self.cells == other.cells

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.grids, self.cells))

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

    def follows(self, groups: int) -> bool:
        """Return whether it begins where so many groups end."""
        return self.start == groups

    def rows(self, table: Tensor) -> Tensor:
        """Return the rows of the span's positions of a table (N, ...) of all positions."""
        return table[self.positions]

    def store(self, room: Tensor, values: Tensor) -> None:
        """Write values (..., L, d) where the span lies in a room (..., N, d)."""
        room[..., self.positions, :] = values

    def seen(self, room: Tensor) -> Tensor:
        """Return what a room (..., N, d) holds of all positions up to the span's end, a view."""
        return room[..., : self.positions.stop, :]

    def back(self) -> Tensor | None:
        """Return which of what is `seen` lies ahead of no position, (L, S); None: see `mask`."""
        return None

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


@dataclass(frozen=True, eq=False)
class Rolling(Span):
    """A span of single cells that the device knows the place of, and the program does not.

    What is captured with it serves every place: the program knows its length, and that it lies
    before `stop`, up to which everything is read.

    Attributes:
        index: (L,) int64 the positions.
    """

    index: Tensor

    __eq__, __hash__ = object.__eq__, object.__hash__

    def follows(self, groups: int) -> bool:
        """Return true: it lies wherever it is put."""
        return True

    def rows(self, table: Tensor) -> Tensor:
        """Return the rows of the span's positions of a table (N, ...) of all positions."""
        return table.index_select(0, self.index)

    def store(self, room: Tensor, values: Tensor) -> None:
        """Write values (..., L, d) where the span lies in a room (..., N, d)."""
        room.index_copy_(-2, self.index, values)

    def back(self) -> Tensor | None:
        """Return which of what is `seen` lies ahead of no position, (L, S) bool."""
        keys = torch.arange(self.positions.stop, device=self.index.device)
        return keys <= self.index[:, None]


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
