"""`var-calibrate`: a budget for the compressed cache of a model, from a few of its own images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from var import store
from var.atomic import write
from var.cache.scale_budget import Budget
from var.cache.scale_selectivity import Observing, choose_drafters
from var.decoding.sequential import Sequential
from var.devices import parse_device, parse_precision
from var.errors import UserError
from var.pipeline import Pipeline, load
from var.recipe import check_sampling
from var.scripts.command import check_least, check_writable, command

log = logging.getLogger("var.scripts.calibrate")


@dataclass
class Options:
    """The command's options and their types; `configs/calibrate.yaml` says what they mean."""

    model: str
    files: str | None
    labels: Any
    number: int
    seed: int
    sampling: dict[str, Any]
    budget: float
    drafters: float
    least: int
    top: int
    queries: int
    precision: str
    device: str
    batch_size: int
    out: str | None
    progress: bool


@command("calibrate")
def main(cfg: DictConfig) -> None:
    """Write the budget that the configuration asks for."""
    merged = OmegaConf.merge(OmegaConf.structured(Options), cfg)
    options = cast(Options, OmegaConf.to_object(merged))
    check(options)
    out = output(options)
    device = parse_device(options.device)
    pipe = load(
        options.model,
        device=device,
        dtype=parse_precision(options.precision, device),
        files=options.files,
    )
    index, schedule = observe(options, pipe), pipe.schedule
    drafters = choose_drafters(index, schedule, options.budget, options.drafters)
    layers = len(index)
    budget = Budget.shared(schedule, layers, options.budget, drafters, options.least)
    write(out, budget.text())
    for group in range(1, len(schedule)):
        log.info(
            "scale %d: %.1f of %d positions in the mean, layer by layer %s",
            group + 1,
            budget.means[group],
            schedule.starts[group],
            " ".join(map(str, budget.capacities[group])),
        )
    log.info("at most %.1f %%: %s", 100 * max(budget.means) / schedule.starts[-2], out)


def check(options: Options) -> None:
    """Check what can be checked before the model is loaded.

    Raises:
        UserError: a number is out of range.
    """
    least = {"number": 1, "seed": 0, "batch_size": 1, "least": 0, "top": 1, "queries": 1}
    check_least(options, least)
    if not 0 < options.budget <= 1:
        raise UserError(f"budget must be above 0 and at most 1, got {options.budget}")
    if not 0 <= options.drafters <= 1:
        raise UserError(f"drafters must be in 0..1, got {options.drafters}")
    check_sampling(options.sampling)


def output(options: Options) -> Path:
    """Return the file to write: `out`, or the budget of the run folder.

    Raises:
        UserError: the model is not in a folder of one's own, or nothing can be written there.
    """
    if options.out is not None:
        out = Path(options.out)
    elif store.exists(options.model):
        out = Path(options.model) / store.BUDGET
    else:
        raise UserError(f"{options.model} is not a run folder: say where to write, out=budget.yaml")
    if out.is_dir():
        raise UserError(f"out={out} is a folder: name a file in it, out={out / store.BUDGET}")
    check_writable(out.parent, str(out))
    return out


def observe(options: Options, pipe: Pipeline) -> Tensor:
    """Return the attention selectivity index (layers, K - 1) while images are drawn.

    Raises:
        UserError: no such label, or the schedule has a single group, or no scales.
    """
    if pipe.schedule.is_raster:
        raise UserError(
            f"{options.model} decides single cells: budgets are for models that decide whole scales"
        )
    if len(pipe.schedule) < 2:
        raise UserError(f"{options.model} decides images in one group: it has no cache to compress")
    ids = labels(options, pipe)
    decoding = Sequential(pipe.model, partial(Observing, top=options.top, queries=options.queries))
    for _ in pipe.batches(
        ids,
        range(options.seed, options.seed + len(ids)),
        sampling=pipe.settings(**cast(Any, options.sampling)),
        decoding=decoding,
        batch_size=options.batch_size,
        progress=options.progress,
    ):
        pass
    return cast(Observing, decoding.cache).index()


def labels(options: Options, pipe: Pipeline) -> list[int]:
    """Return the class of each image: as given, or drawn by the seed, all different if possible."""
    if options.labels is not None:
        given = pipe.ids(options.labels)
        if not given:
            raise UserError("labels=[] names no class: there is nothing to observe")
        return given
    classes = pipe.class_count
    if not classes:
        return [-1] * options.number
    rng, ids = torch.Generator().manual_seed(options.seed), list[int]()
    while len(ids) < options.number:
        ids += torch.randperm(classes, generator=rng).tolist()
    return ids[: options.number]


if __name__ == "__main__":
    main()
