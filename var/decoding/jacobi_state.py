"""What `var.decoding.jacobi` keeps from turn to turn, and what a turn shows.

Letters: B images, K groups, N positions of an image, L of a turn, V vocabulary, C places in a
window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from var.schedule import Grid, Schedule, Span

# Groups of a turn on a GPU are a multiple of so many.
_ROUND = 8


@dataclass
class State:
    """Where a run stands.

    Attributes:
        schedule: of the canvas.
        levels: (N,) int64 group of each position.
        starts: (K + 1,) int64 first position of each group, and N.
        done: groups that all rows have decided.
        own: (B,) int64 groups that each row has decided, at least `done`.
        ahead: the largest `own` of rows that are not finished, less `done`.
        slots: groups in a row's window now, of which the last has no guess.
        tokens: (B, N) int64 decided tokens and guesses of all groups.
        places: C, positions of a window at most.
        laws: (B, L, V) what the guesses of this turn were drawn from, from `done` on; None: not
            asked for.
    """

    schedule: Schedule
    levels: Tensor
    starts: Tensor
    done: int
    own: Tensor
    ahead: int
    slots: int
    tokens: Tensor
    places: int
    laws: Tensor | None = None

    @property
    def span(self) -> Span:
        """The groups of this turn.

        More than need be, where steps are captured, so that there are few lengths of them.
        """
        length = self.ahead + self.slots
        if self.own.is_cuda and self.slots > 1 and self.schedule.is_raster:
            length = -(-length // _ROUND) * _ROUND
        return self.schedule[self.done : min(len(self.schedule), self.done + length)]

    @property
    def grid(self) -> Grid | None:
        """(h, w) of single cells, row by row; None: the groups are none."""
        return self.schedule.grids[0] if self.schedule.is_raster else None

    def columns(self, span: Span) -> Tensor:
        """Return how far positions are behind what their row has decided, (B, L) in 0..C - 1."""
        here = span.positions
        positions = torch.arange(here.start, here.stop, device=self.own.device)
        return (positions - self.starts[self.own][:, None]).clamp(0, self.places - 1)


class Look(NamedTuple):
    """What a turn's pass has shown.

    Attributes:
        p: (B, L, V) predictions; their logits if nothing is drawn.
        drawn: (B, L) ids drawn from them, or the likeliest.
        uniform: (4, B, C) see `Jacobi._uniform`; None: there are no streams.
        columns: (B, L) which of them belong to which position.
    """

    p: Tensor
    drawn: Tensor
    uniform: Tensor | None = None
    columns: Tensor | None = None

    def numbers(self, row: int) -> Tensor:
        """Return those of one purpose, (B, L)."""
        assert self.uniform is not None and self.columns is not None
        return self.uniform[row].gather(1, self.columns)


def by_group(good: Tensor, span: Span) -> Tensor:
    """Return whether all positions of a group are good, (B, L) -> (B, groups)."""
    if len(span) == len(span.sizes):
        return good
    return torch.stack([part.all(dim=1) for part in good.split(span.sizes, dim=1)], dim=1)


def picked(laws: Tensor, where: Tensor) -> Tensor:
    """Return the laws (B, S, V) of positions (B, S)."""
    return laws.gather(1, where[..., None].expand(-1, -1, laws.shape[-1]))


def shifted(laws: Tensor, old: slice, new: slice) -> Tensor:
    """Return laws (B, L, V) of positions `old` for positions `new`, zeros where there are none."""
    kept = laws[:, new.start - old.start : new.stop - old.start]
    return F.pad(kept, (0, 0, 0, new.stop - new.start - kept.shape[1]))


def widest(schedule: Schedule, window: int) -> int:
    """Return how many positions so many consecutive groups have at most."""
    starts = schedule.starts
    return max(b - starts[max(0, k - window)] for k, b in enumerate(starts))
