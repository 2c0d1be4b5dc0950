"""The canvas of next-token models: the tokens of one grid, in the order of the schedule.

What a token was decided as is all that the next one sees of it (LlamaGen, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from var.errors import UserError
from var.schedule import Schedule, Span


def check_chain(schedule: Schedule) -> None:
    """Check that the groups of a schedule are single cells of one grid.

    Raises:
        UserError: they are not.
    """
    if set(schedule.sizes) != {1} or len(set(schedule.grids)) > 1 or None in schedule.cells:
        h, w = schedule.grids[-1]
        raise UserError(
            f"a tokenizer of one grid decides it cell by cell, not by scales that end on {h} x {w}:"
            f" say schedule={{raster: {h if h == w else [h, w]}}}"
        )


@dataclass(frozen=True, eq=False)
class Chain:
    """Tokens that are written one after the other.

    Attributes:
        schedule: single cells of one grid.
        seen: (B, 1 + done) int64 what each group up to the next one sees: the token before it, and
            0 before the first.
        embed: ids (B, L) to latent vectors (B, L, C).
    """

    schedule: Schedule
    seen: Tensor
    embed: Callable[[Tensor], Tensor]

    @classmethod
    def blank(
        cls,
        batch: int,
        schedule: Schedule,
        embed: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> Self:
        """Return a canvas on which nothing is decided.

        Raises:
            UserError: the schedule's groups are not single cells of one grid.
        """
        check_chain(schedule)
        return cls(schedule, torch.zeros(batch, 1, dtype=torch.int64, device=device), embed)

    @property
    def done(self) -> int:
        """Number of tokens decided."""
        return self.seen.shape[1] - 1

    @property
    def ids(self) -> Tensor:
        """(B, done) tokens decided, in the order of the schedule."""
        return self.seen[:, 1:]

    @cached_property
    def latent(self) -> Tensor:
        """(B, C, h, w) code vectors of what is decided, zeros elsewhere."""
        with torch.no_grad():  # as if written when the tokens were: nothing is learned by it
            vectors, (h, w) = self.embed(self.ids), self.schedule.grids[0]
        cells = [cell for group in self.schedule.cells[: self.done] for cell in group or ()]
        latent = vectors.new_zeros(vectors.shape[0], h * w, vectors.shape[-1])
        latent[:, cells] = vectors
        return latent.unflatten(1, (h, w)).movedim(-1, 1)

    def read(self, span: Span) -> Tensor:
        """Return the tokens before those of the groups of `span`, (B, L) int64.

        Raises:
            ValueError: they are not decided yet.
        """
        if span.stop > self.seen.shape[1]:
            raise ValueError(
                f"token {span.stop - 1} cannot be predicted: only {self.done} are written"
            )
        return self.seen[:, span.start : span.stop]

    def write(self, *tokens: Tensor) -> Self:
        """Return the canvas with the next tokens decided, (B, 1) ids each.

        Raises:
            ValueError: tokens that are no ids, or more than there are cells.
        """
        if self.done + len(tokens) > len(self.schedule):
            raise ValueError(f"{self.done} + {len(tokens)} tokens for {len(self.schedule)} cells")
        if any(each.is_floating_point() for each in tokens):
            raise ValueError("a chain is written with ids: mixtures of codes cannot be read again")
        return replace(self, seen=torch.cat([self.seen, *tokens], dim=1))

    def rows(self, index: Tensor) -> Self:
        """Return the canvas of some of the images, those of `index` (b,) int64."""
        return replace(self, seen=self.seen[index])

    def joined(self, *others: Self) -> Self:
        """Return the canvas of these images and those of others that are as far."""
        return replace(self, seen=torch.cat([self.seen, *(each.seen for each in others)]))
