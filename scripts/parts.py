"""What a training run is made of, as configured: tokenizer, schedule, teacher."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from var import hub, store
from var.data.images import ImageData
from var.errors import UserError
from var.ladders import on_ladder
from var.recipe import Data, Recipe, build, keywords, parse_schedule, written
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer
from var.training.distil import DistilTask
from var.training.task import Task


def trained_tokenizer(cfg: DictConfig) -> store.Run:
    """Return the run of the tokenizer to train on, on the schedule to train.

    Raises:
        UserError: there is none of that name, or it cannot serve that schedule.
    """
    base = hub.find(cfg.tokenizer.run, files=cfg.files)
    schedule = parse_schedule(plain(cfg.schedule), "schedule")
    return on_ladder(base, schedule, f"tokenizer.run={cfg.tokenizer.run}")


def new_tokenizer(cfg: DictConfig) -> store.Run:
    """Return the tokenizer to train, with new weights or that of `init.run`.

    Raises:
        UserError: it cannot be built so, or there is none of that name.
    """
    spec, schedule = plain(cfg.tokenizer), parse_schedule(plain(cfg.schedule), "schedule")
    if cfg.init.run:
        if "_target_" in spec:
            raise UserError(
                f"init.run={cfg.init.run}: say tokenizer=none to train its tokenizer on, or "
                "tokenizer=trained tokenizer.run=… for its generator"
            )
        found = on_ladder(
            hub.find(cfg.init.run, files=cfg.files), schedule, f"init.run={cfg.init.run}"
        )
        recipe = Recipe(found.recipe.tokenizer, schedule)
        return store.Run(recipe, found.tokenizer.requires_grad_(True))
    if "_target_" not in spec:
        raise UserError("tokenizer=none is that of a run: name it by init.run=…")
    if "scales" in keywords(spec, "tokenizer"):
        if schedule.is_raster:
            raise UserError(
                f"{kind(spec)} makes whole scales, but schedule={cfg.schedule} is of single cells: "
                "use the ladder of its scales, as in schedule=[1,2,4,8], or tokenizer=vq"
            )
        spec["scales"] = len(schedule)
    return store.Run(Recipe(spec, schedule), build(spec, "tokenizer", device="cpu"))


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
