"""Candidates that are drawn together: some of them, others beside them, the best of each label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from var.random import Rng
from var.tokenizers.tokenizer import Canvas


@dataclass(frozen=True)
class Lot:
    """Candidates that are drawn together, label by label, each label's in turn.

    Attributes:
        label: (b,) int64 number of each one's label.
        index: (b,) int64 which of the label's candidates it is.
        rng: their streams.
        canvas: what is decided of them; None: nothing, or they are finished.
        scores: (b,) float64 as far as they are; None: not told yet.
        images: (b, 3, H, W) in [0, 1]; None: they are not finished.
    """

    label: Tensor
    index: Tensor
    rng: Rng
    canvas: Canvas | None = None
    scores: Tensor | None = None
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, index: Tensor) -> Lot:
        """Return some of them, those of `index` (n,) int64."""
        return Lot(*(_rows(part, index) for part in vars(self).values()))

    def split(self, count: int) -> tuple[Lot, Lot]:
        """Return the first so many, and the others."""
        every = torch.arange(len(self))
        return self.rows(every[:count]), self.rows(every[count:])

    def joined(self, other: Lot) -> Lot:
        """Return them and others that are as far."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Lot(*(_joined(mine, theirs) for mine, theirs in pairs))


def _rows(part: Any, index: Tensor) -> Any:
    if part is None:
        return None
    return part[index] if isinstance(part, Tensor) else part.rows(index)


def _joined(mine: Any, theirs: Any) -> Any:
    if mine is None:
        return None
    return torch.cat([mine, theirs]) if isinstance(mine, Tensor) else mine.joined(theirs)


def merged(lots: Iterable[Lot], size: int) -> Iterator[Lot]:
    """Yield the candidates of lots, in turn, so many at a time, and the rest."""
    held: Lot | None = None
    for lot in lots:
        held = held.joined(lot) if held else lot
        while len(held) >= size:
            batch, held = held.split(size)
            yield batch
    if held:
        yield held


def ranked(label: Tensor, scores: Tensor) -> Tensor:
    """Return the order (b,) of candidates, label by label, best first; of equals the earlier."""
    order = scores.argsort(descending=True, stable=True)
    return order[label[order].argsort(stable=True)]


def leaders(label: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return which candidates, in turn, are among so many best of their label."""
    order = ranked(label, scores)
    whose = label[order]
    place = torch.arange(len(order)) - torch.searchsorted(whose, whose)
    return order[place < count].sort().values
