"""What a training run is made of, as configured: tokenizer, backbone, teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import nn

from var import hub, store
from var.data.images import ImageData
from var.errors import UserError
from var.recipe import Data, build, keywords, parse_schedule, written
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer
from var.training.distil import DistilTask
from var.training.task import Task


def trained_tokenizer(cfg: DictConfig) -> store.Run:
    """Return the run of the tokenizer to train on, on the schedule to train.

    Raises:
        UserError: there is none of that name, or it serves another schedule only.
    """
    base, schedule = (
        hub.find(cfg.tokenizer.run, files=cfg.files),
        parse_schedule(plain(cfg.schedule), "schedule"),
    )
    if schedule != base.recipe.schedule and not cast(Tokenizer, base.tokenizer).any_schedule:
        raise UserError(
            f"schedule={cfg.schedule} is not that of tokenizer.run={cfg.tokenizer.run}, "
            f"{base.recipe.schedule}: leave schedule out, or train another tokenizer"
        )
    return replace(base, recipe=replace(base.recipe, schedule=schedule))


def make_backbone(
    cfg: DictConfig, data: ImageData, base: store.Run
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a backbone for a tokenizer, new or with the weights of `init.run`, and its spec.

    Raises:
        UserError: it cannot be built so, or the run to begin with is of another kind.
    """
    start = hub.companion(base, cfg.init.run, files=cfg.files) if cfg.init.run else None
    if start is not None and not cfg.backbone:
        spec = dict(start.recipe.backbone or {})
    else:
        spec = {
            **terms(cfg, base),
            "classes": len(data.classes),
            **geometry(plain(cfg.backbone), base.recipe.schedule),
            **plain(cfg.backbone),
        }
    backbone = build(spec, "backbone", device="cpu")
    if start is not None and start.model is not None:
        if spec.get("classes") != len(data.classes):
            raise UserError(
                f"init.run={cfg.init.run} knows {spec.get('classes', 'no')} classes, "
                f"{data.name} has {len(data.classes)}"
            )
        take_weights(backbone, start.model, cfg.init.run)
    return backbone, spec


def geometry(spec: dict[str, Any], schedule: Schedule) -> dict[str, Any]:
    """Return a schedule as the keyword by which a backbone knows it.

    Raises:
        UserError: the backbone decides images in another way.
    """
    known, side = keywords(spec, "backbone"), schedule.grids[-1][0]
    if schedule.is_raster and "grid" in known:
        return {"grid": written(schedule)["raster"]}
    if not schedule.is_raster and "ladder" in known:
        return {"ladder": written(schedule)}
    if "grid" in known:
        raise UserError(
            f"{kind(spec)} decides single cells, but schedule={written(schedule)} is a ladder of "
            f"scales: use schedule={{raster:{side}}} and a tokenizer of one scale"
        )
    raise UserError(
        f"{kind(spec)} decides whole scales, but schedule={written(schedule)} is of single cells: "
        f"use a ladder, as in schedule=[1,2,4,{side}], or backbone=raster"
    )


def terms(cfg: DictConfig, base: store.Run) -> dict[str, int]:
    """Return what a new backbone must know of the tokens that it is trained on.

    Raises:
        UserError: they are of a kind that it does not predict.
    """
    found, spec = cast(Tokenizer, base.tokenizer).terms, plain(cfg.backbone)
    if odd := [name for name in found if name not in keywords(spec, "backbone")]:
        raise UserError(
            f"tokenizer.run={cfg.tokenizer.run} makes tokens of {odd[0]}={found[odd[0]]}, which "
            f"{kind(spec)} does not predict: choose another tokenizer, or another backbone"
        )
    return found


def kind(spec: dict[str, Any]) -> str:
    """Return the name of a spec's class."""
    return str(spec["_target_"]).rpartition(".")[2]


def take_weights(module: nn.Module, source: nn.Module, name: str) -> None:
    """Give a backbone the weights of another one.

    Raises:
        UserError: they are of different shapes.
    """
    ours, theirs = module.state_dict(), source.state_dict()
    alike = [k for k in ours if k in theirs and ours[k].shape == theirs[k].shape]
    if odd := sorted((ours.keys() | theirs.keys()) - set(alike)):
        raise UserError(
            f"init.run={name} is another backbone: {odd[0]} and {len(odd) - 1} more do not fit. "
            "Leave backbone out, or give the numbers of that run"
        )
    module.load_state_dict(theirs)


def distil(cfg: DictConfig, base: store.Run, common: dict[str, Any]) -> Task:
    """Return the task of learning from a teacher, a generator of the same tokens."""
    settings = plain(cfg.teacher)
    teacher = hub.companion(base, settings.pop("run"), files=cfg.files)
    return DistilTask(**common, **settings, teacher=teacher.model, steps=cfg.trainer.steps)


def check_sizes(tokenizer: Any, schedule: Schedule, data: ImageData) -> None:
    """Check that the schedule is one for the tokenizer, and ends on its grid of the images.

    Raises:
        UserError: it does not; the message says what would.
    """
    side, rest = divmod(data.size, tokenizer.factor)
    if rest or schedule.grids[-1] != (side, side):
        raise UserError(
            f"schedule ends on a grid of {schedule.grids[-1]}, but {data.name} images of "
            f"{data.size} pixels have {data.size / tokenizer.factor:g} cells a side in this "
            f"tokenizer: change {'it' if schedule.is_raster else 'the last entry of schedule'}, "
            "or take another tokenizer"
        )
    tokenizer.blank(1, schedule)  # of one grid: refuses scales


def describe(data: ImageData) -> Data:
    """Return what a run folder says of its data."""
    return Data(name=data.name, classes=tuple(data.classes), size=data.size)


def plain(node: Any) -> Any:
    """Return a config node as plain Python values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
