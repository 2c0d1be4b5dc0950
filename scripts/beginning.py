"""What a generator begins with, and what of it is trained: new weights, or those of a run."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig
from torch import nn

from var import hub, store
from var.condition import Condition
from var.data.images import ImageData
from var.data.numbered import Numbered
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.labels import class_ids
from var.random import Rng
from var.recipe import build, parse_sampling
from var.schedule import Schedule
from var.scripts.parts import geometry, plain, terms
from var.tokenizers.tokenizer import Canvas
from var.training import growth
from var.training.subject import SubjectTask
from var.training.task import Task
from var.training.tuning import tune

log = logging.getLogger(__name__)


def numbered(cfg: DictConfig, data: ImageData) -> ImageData:
    """Return a data set with the class ids of the model to train.

    They are its own, or with `init.classes=grow` come after those of the run to begin with.

    Raises:
        UserError: there is no such run, or its classes have no names.
    """
    if cfg.init.classes not in ("data", "grow"):
        raise UserError(f"init.classes={cfg.init.classes}: use data or grow")
    if cfg.init.like is not None and not cfg.init.run:
        raise UserError(f"init.like={cfg.init.like} is a class of a run: name it by init.run=…")
    if cfg.subject.first is not None and cfg.subject.prior is None:
        raise UserError("subject.first goes with subject.prior: name that class too")
    if cfg.init.classes == "data":
        return data
    if not cfg.init.run:
        raise UserError("init.classes=grow adds classes to those of a run: name it by init.run=…")
    run = hub.find(cfg.init.run, files=cfg.files)
    known, count = run.recipe.data.classes, (run.recipe.backbone or {}).get("classes") or 0
    if len(known) != count:
        raise UserError(
            f"init.classes=grow: init.run={cfg.init.run} has {count} classes and names for "
            f"{len(known)}: use init.classes=data"
        )
    found = growth.matched(data.classes, known, by_number=False)
    names = [*known, *(c for c, i in zip(data.classes, found, strict=True) if i is None)]
    ids = iter(range(len(known), len(names)))
    return Numbered(data, [next(ids) if i is None else i for i in found], names)


def make_backbone(
    cfg: DictConfig, data: ImageData, base: store.Run
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a backbone for a tokenizer, new or with the weights of `init.run`, and its spec.

    Raises:
        UserError: it cannot be built so, or the run to begin with is of another kind.
    """
    start = None
    if cfg.init.run:
        start = hub.companion(base, cfg.init.run, files=cfg.files, any_schedule=True)
    if start is not None and not cfg.backbone:
        own = dict(start.recipe.backbone or {})
        spec = {**own, "classes": len(data.classes), **geometry(own, base.recipe.schedule)}
    else:
        own, known = plain(cfg.backbone), terms(cfg, base)
        place = geometry(own, base.recipe.schedule)
        spec = {**known, "classes": len(data.classes), **place, **own}
    if start is not None and not (start.recipe.backbone or {}).get("classes"):
        raise UserError(f"init.run={cfg.init.run} knows no classes, {data.name} has nothing else")
    backbone = build(spec, "backbone", device="cpu")
    if start is not None:
        take_weights(backbone, start, cfg, data, base.recipe.schedule)
    tuning = plain(cfg.tuning)
    adapters = tuning.pop("lora")
    if tuning["layers"] is not None or adapters["rank"] is not None:
        if start is None:
            raise UserError("tuning chooses what to train of a run: name it by init.run=…")
        tune(backbone, **tuning, adapters=None if adapters["rank"] is None else adapters)
    return backbone, spec


def take_weights(
    module: nn.Module, start: store.Run, cfg: DictConfig, data: ImageData, schedule: Schedule
) -> None:
    """Give a backbone the weights of a run, grown to its classes and its schedule.

    Raises:
        UserError: the run is of another kind, or of other sizes.
    """
    assert start.model is not None
    old, name = start.recipe.schedule, cfg.init.run
    if old != schedule:
        log.info("init.run=%s: places go from %s to %s", name, old, schedule)
    classes = beginnings(start, cfg, data)
    state = growth.grown(start.model, module, classes=classes, old=old, new=schedule)
    wanted = module.state_dict()
    alike = [k for k in wanted if k in state and wanted[k].shape == state[k].shape]
    if odd := sorted((wanted.keys() | state.keys()) - set(alike)):
        raise UserError(
            f"init.run={name} is another backbone: {odd[0]} and {len(odd) - 1} more do not fit. "
            "Leave backbone out, or give the numbers of that run"
        )
    module.load_state_dict(state)


def beginnings(start: store.Run, cfg: DictConfig, data: ImageData) -> list[int | None]:
    """Return as which class of a run each class of the data begins; None: as no class.

    Raises:
        UserError: there is no class `init.like`.
    """
    known, count = start.recipe.data.classes, int((start.recipe.backbone or {})["classes"])
    like = None
    if cfg.init.like is not None:
        (like,) = class_ids([cfg.init.like], classes=known, count=count)
    if cfg.init.classes == "grow":  # those of the run come first, see `numbered`
        found = [*range(count), *[None] * (len(data.classes) - count)]
    else:
        found = growth.matched(data.classes, known, by_number=len(data.classes) == count)
        if found and set(found) == set(range(count)) and list(data.classes) != list(known):
            log.info("init.run=%s: no names are alike, classes begin by number", cfg.init.run)
    if new := [c for c, i in zip(data.classes, found, strict=True) if i is None]:
        place = f"init.run={cfg.init.run}: {len(found) - len(new)} classes stay"
        log.info("%s, new ones begin as %s: %s", place, cfg.init.like or "none", ", ".join(new))
    return [like if i is None else i for i in found]


def classes_of(data: ImageData) -> list[int]:
    """Return the ids of the classes that a data set has images of: all, unless they are renumbered.

    >>> from var.data.images import digits
    >>> classes_of(digits())[-1]
    9
    """
    return list(data.ids) if isinstance(data, Numbered) else list(range(len(data.classes)))


def subject(cfg: DictConfig, base: store.Run, data: ImageData, common: dict[str, Any]) -> Task:
    """Return the task of learning a subject without forgetting its class.

    Raises:
        UserError: the run to begin with does not know the class.
    """
    if not cfg.init.run or cfg.init.classes != "grow" or cfg.teacher.run:
        raise UserError(
            "subject.prior is a class of the run to begin with: name it by init.run=… with "
            "init.classes=grow, and leave teacher.run out"
        )
    settings, run = plain(cfg.subject), hub.companion(base, cfg.init.run, files=cfg.files)
    known, count = run.recipe.data.classes, int((run.recipe.backbone or {})["classes"])
    (prior,) = class_ids([settings.pop("prior")], classes=known, count=count)
    sampling = parse_sampling(settings.pop("sampling"), "subject.sampling")
    schedule = base.recipe.schedule

    def draw(model: Any, condition: Condition, rng: Rng) -> Canvas:
        *_, canvas = decide(
            common["tokenizer"], schedule, condition, Sequential(model), sampling, rng
        )
        return canvas

    return SubjectTask(**common, **settings, teacher=run.model, draw=draw, prior=prior)
