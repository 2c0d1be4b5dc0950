"""First guesses: what is written where no earlier turn has guessed anything (SJD, sections 4, 6).

A guess comes with the law that it was drawn from, which the test of it needs; one that is copied,
or chosen, has all its mass on itself. No choice of guesses changes what images are like, only how
many turns they take.

Letters: B images, N cells of an image, L positions to be guessed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from var.decoding.verify import draw
from var.schedule import Grid


@dataclass(frozen=True, eq=False)
class Known:
    """What guesses can be made of.

    Attributes:
        tokens: (B, N) ids: decided ones, then earlier guesses.
        count: (B,) int64 how many of them there are.
        law: (B, 1, V) prediction of the last of them; None before the first turn.
        grid: (h, w) of the cells, row by row; None: not single cells of one grid.
    """

    tokens: Tensor
    count: Tensor
    law: Tensor | None
    grid: Grid | None

    def back(self, cells: Tensor, distance: int) -> Tensor:
        """Return ids (B, L) so many cells before, or the last one known if those are not."""
        source = torch.minimum(cells - distance, self.count[:, None] - 1)
        return self.tokens.gather(1, source.clamp(min=0))

    def behind(self, cells: Tensor) -> Tensor:
        """Return which of the cells (B, L) bool have anything known before them."""
        return cells & (self.count > 0)[:, None]


# What is known, cells (B, L), uniform numbers (B, L) in [0, 1) and V to ids (B, L), the laws
# (B, L, V) they are drawn from, and where there are any, (B, L) bool.
Guess = tuple[Tensor, Tensor, Tensor]
Guesser = Callable[[Known, Tensor, Tensor, int], Guess]


def random(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    """Guess any code; that is, draw from the law under which all of them are equally likely."""
    ids = (uniform * vocabulary).long().clamp(max=vocabulary - 1)
    law = uniform.new_full((1, 1, 1), 1 / vocabulary).expand(*ids.shape, vocabulary)
    return ids, law, torch.ones_like(ids, dtype=torch.bool)


def left(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    """Repeat the cell on the left; there is none in the first column."""
    ids = known.back(cells, 1)
    return ids, point(ids, vocabulary), known.behind(cells % _width(known) > 0)


def above(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    """Repeat the cell above; there is none in the first row."""
    width = _width(known)
    ids = known.back(cells, width)
    return ids, point(ids, vocabulary), known.behind(cells >= width)


def sampled(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    """Draw from the prediction of the cell on the left; there is none in the first column."""
    width = _width(known)
    if known.law is None:
        return _nothing(cells, vocabulary)
    law = known.law.expand(-1, cells.shape[1], -1)
    return draw(law, uniform), law, cells % width > 0


def likeliest(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    """Take the likeliest of the prediction of the cell on the left (published `sample_horizon`)."""
    width = _width(known)
    if known.law is None:
        return _nothing(cells, vocabulary)
    ids = known.law.argmax(dim=-1).expand_as(cells)
    return ids, point(ids, vocabulary), cells % width > 0


GUESSERS: dict[str, Guesser] = {
    "random": random,
    "left": left,
    "above": above,
    "sampled": sampled,
    "likeliest": likeliest,
}


def guessed(
    guesser: Guesser, known: Known, cells: Tensor, uniform: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Return guesses of all cells (B, L), random where the guesser has none, and their laws."""
    ids, law, there = guesser(known, cells, uniform, vocabulary)
    if guesser is random:
        return ids, law
    others, flat, _ = random(known, cells, uniform, vocabulary)
    return torch.where(there, ids, others), torch.where(there[..., None], law, flat)


def point(ids: Tensor, vocabulary: int) -> Tensor:
    """Return the laws (..., V) float32 that have all their mass on ids (...)."""
    law = torch.zeros(*ids.shape, vocabulary, device=ids.device)
    return law.scatter_(-1, ids[..., None], 1.0)


def _nothing(cells: Tensor, vocabulary: int) -> Guess:
    nowhere = torch.zeros_like(cells, dtype=torch.bool)
    return torch.zeros_like(cells), point(torch.zeros_like(cells), vocabulary), nowhere


def _width(known: Known) -> int:
    if known.grid is None:
        raise ValueError("neighbours of a cell are known on a raster only: guess at random")
    return known.grid[1]
