"""Weights of a trained backbone for other classes, or for another schedule of the same kind.

What belongs to a class goes by `Classes`; what belongs to a place, by the tables that a module's
class names: `per_position`, a row for each position of the first groups, and `per_group`, a row for
each group. All other weights are as they were. Letters: D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.labels import numbers
from var.nn.classes import Classes
from var.schedule import Grid, Schedule


def matched(
    names: Sequence[str], known: Sequence[str], *, by_number: bool = False
) -> list[int | None]:
    """Return which class of a run each class is; None: none of them.

    It is the one of the same name, or else of the same name in another case.

    Args:
        names: of the classes.
        known: those of the run; empty if its classes have no names.
        by_number: where no name is known it is the one of the same number: folders often go by
            numbers of their own.

    >>> matched(["Dog", "bird"], ["cat", "dog"])
    [1, None]
    """
    if list(names) == list(known):
        return list(range(len(names)))  # names may occur twice
    ids = numbers(known)
    found = [ids.get(name, ids.get(name.casefold())) for name in names]
    return list(range(len(names))) if by_number and set(found) == {None} else found


def grown(
    source: nn.Module,
    target: nn.Module,
    *,
    classes: Sequence[int | None],
    old: Schedule,
    new: Schedule,
) -> dict[str, Tensor]:
    """Return the weights of a backbone in the shapes of another one, as far as they can grow.

    Args:
        source: the trained backbone.
        target: one of the same kind; its weights do not matter.
        classes: the class of `source` that each of `target`'s begins as; None: as no class.
        old, new: their schedules.
    """
    state, wanted = source.state_dict(), target.state_dict()
    for prefix, part in source.named_modules():
        if isinstance(part, Classes):
            state[_key(prefix, "weight")] = embeddings(part, classes)
        for name in getattr(part, "per_position", ()):
            key = _key(prefix, name)
            if key in wanted and len(wanted[key]) in new.starts:
                state[key] = positions(state[key], old, new, len(wanted[key]))
        for name in getattr(part, "per_group", ()):
            key = _key(prefix, name)
            state[key] = state[key][nearest(old.grids, new.grids)]
    return state


def embeddings(table: Classes, classes: Sequence[int | None]) -> Tensor:
    """Return a table of other classes (N, D): a known one, or None for what stands for no class.

    That is the null class, which stays the last one, or the mean of all where there is none. Equal
    rows part at the first step: each gets the gradient of its own images.
    """
    rows, null = table.weight.detach(), table.least < 0
    none = rows[-1] if null else rows.mean(dim=0)
    return torch.stack([none if i is None else rows[i] for i in classes] + [none] * null)


def positions(table: Tensor, old: Schedule, new: Schedule, rows: int) -> Tensor:
    """Return a table (L, D) of the positions of `old`'s first groups as one of `new`'s, (rows, D).

    Each grid is the nearest one of the old grids, resized as a picture (bicubic).
    """
    groups = old.starts.index(len(table))
    grids, parts = old.grids[:groups], table.split(old.sizes[:groups])
    wanted = new.grids[: new.starts.index(rows)]
    near = zip(nearest(grids, wanted), wanted, strict=True)
    return torch.cat([_resized(parts[i], grids[i], grid) for i, grid in near])


def nearest(old: Sequence[Grid], new: Sequence[Grid]) -> list[int]:
    """Return which old grid is nearest in size to each new one, the first of equals.

    Size, not rank, tells what a scale shows: 4x4 cells are the same coarse outline of an image,
    however many finer scales there are.

    >>> nearest([(1, 1), (4, 4), (8, 8)], [(1, 1), (3, 3), (8, 8), (16, 16)])
    [0, 1, 2, 2]
    """

    def apart(a: Grid, b: Grid) -> float:
        return sum(abs(math.log(x / y)) for x, y in zip(a, b, strict=True))

    return [min(range(len(old)), key=lambda i: apart(old[i], grid)) for grid in new]


def _resized(part: Tensor, old: Grid, new: Grid) -> Tensor:
    if old == new:
        return part
    picture = rearrange(part, "(h w) D -> 1 D h w", h=old[0])
    # Without the filter a smaller picture would be every so many cells of the larger one.
    resized = F.interpolate(picture, new, mode="bicubic", antialias=True)
    return rearrange(resized, "1 D h w -> (h w) D")


def _key(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
