"""Trained tokenizers on ladders of scales that they were not trained on."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from math import log2
from typing import Any

from var.errors import UserError
from var.schedule import Schedule
from var.store import Run

log = logging.getLogger(__name__)


def on_ladder(run: Run, schedule: Schedule, name: str) -> Run:
    """Return the run of a tokenizer on another schedule.

    Of a tokenizer of scales, what belongs to a scale (its statistics, its Phi where each has one)
    becomes that of the scale `nearest` to it.

    Args:
        run: of a tokenizer; it stays as it is.
        schedule: the new one.
        name: of the run, for messages, as in `tokenizer.run=fashion-vq`.

    Raises:
        UserError: the schedule is one of single cells, which the tokenizer does not make.
    """
    old, spec, tokenizer = run.recipe.schedule, run.recipe.tokenizer, run.tokenizer
    scaled: Any = tokenizer
    if schedule != old and not scaled.any_schedule:
        if any(cells is not None for cells in schedule.cells):
            raise UserError(
                f"{name} makes whole scales, but schedule is {schedule}: use a ladder, as in "
                "schedule=[1,2,4,8], or another tokenizer"
            )
        scaled = deepcopy(tokenizer)
        origin = nearest(old, schedule)
        scaled.quantizer.rescale(origin)
        spec = {**spec, "scales": len(schedule)}
        served = ", ".join(str(old.grids[k]) for k in origin)
        log.info("%s: its scales %s now serve %s", name, served, schedule)
    return replace(
        run, tokenizer=scaled, recipe=replace(run.recipe, tokenizer=spec, schedule=schedule)
    )


def nearest(old: Schedule, new: Schedule) -> list[int]:
    """Return for each scale of `new` its like in `old`.

    If they are equally long it is the one in its place, as in a training on both of them; otherwise
    the one whose cells cover the most similar share of the image.

    >>> nearest(Schedule.scales([1, 2, 3, 4, 6, 8]), Schedule.scales([1, 2, 4, 8, 16]))
    [0, 1, 3, 5, 5]
    """
    if len(old) == len(new):
        return list(range(len(old)))
    areas = [[log2(h * w) for h, w in schedule.grids] for schedule in (old, new)]
    return [min(range(len(old)), key=lambda k: abs(areas[0][k] - area)) for area in areas[1]]
