"""`var-train`: compose a training run from the configs and start it, or go on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from var import hub, store
from var.data.batches import Batches, loader
from var.data.images import ImageData, check_pixels
from var.errors import UserError
from var.models.base import Backbone
from var.pipeline import Pipeline
from var.recipe import Data, Recipe, build, keywords, parse_sampling, parse_schedule, written
from var.schedule import Schedule
from var.scripts.command import command, made
from var.tokenizers.losses import Objective
from var.tokenizers.tokenizer import Tokenizer
from var.training.checkpoint import Checkpoints
from var.training.distil import DistilTask
from var.training.generator import GeneratorTask
from var.training.loop import Settings, Trainer
from var.training.task import Task


@command("train")
def main(cfg: DictConfig) -> None:
    """Train what the configuration describes."""
    settings: Settings = made(cfg.trainer)
    folder = Path(cfg.runs) / cfg.name
    checkpoint = resume_from(cfg.resume, folder)
    data: ImageData = made(cfg.data.train)
    torch.manual_seed(settings.seed)  # of the initial weights
    compose = generator if cfg.backbone or cfg.init.run else tokenizer
    task, export = compose(cfg, data, folder)
    Trainer(
        task=task,
        data=lambda start, shard: batches(data, settings, start, shard),
        folder=folder,
        settings=settings,
        export=export,
    ).fit(checkpoint)


def resume_from(choice: str, folder: Path) -> Path | None:
    """Return the checkpoint to go on from, if any."""
    if choice not in ("auto", "never"):
        if not (Path(choice) / "progress.json").is_file():
            raise UserError(
                f"resume={choice} is not a checkpoint: name a folder step-…, or use auto"
            )
        return Path(choice)
    found = Checkpoints(folder / "checkpoints").all()
    if found and choice == "never":
        raise UserError(
            f"{folder} holds checkpoints: go on with resume=auto, or set another name=…"
        )
    return found[-1] if found else None


def batches(
    data: ImageData, settings: Settings, start: int, shard: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the endless training batches of one process."""
    size = settings.batch_size // settings.accumulation
    return iter(loader(data, Batches(len(data), size, settings.seed, start, shard)))


Export = Callable[[nn.Module], None]


def tokenizer(cfg: DictConfig, data: ImageData, folder: Path) -> tuple[Task, Export]:
    """Return the task of training a tokenizer, and how its run folder is written."""
    for name in ("groups", "init.run", "teacher.run"):
        if OmegaConf.select(cfg, name) is not None:
            raise UserError(f"{name} is for generators: leave it out, or choose a backbone")
    check_pixels(data, "training a tokenizer")
    spec: dict[str, Any] = plain(cfg.tokenizer)
    schedule = parse_schedule(plain(cfg.schedule), "schedule")
    if "scales" in keywords(spec, "tokenizer"):
        if schedule.is_raster:
            raise UserError(
                f"{kind(spec)} makes whole scales, but schedule={cfg.schedule} is of single cells: "
                "use the ladder of its scales, as in schedule=[1,2,4,8], or tokenizer=vq"
            )
        spec["scales"] = len(schedule)
    recipe = Recipe(spec, schedule, data=describe(data))
    module: Any = build(spec, "tokenizer", device="cpu")
    check_sizes(module, schedule, data)
    task = made(cfg.task)(
        tokenizer=module,
        objective=Objective(made(cfg.objective)),
        schedule=schedule,
        sample=data.__getitems__(range(10))[0],
    )
    return task, lambda module: store.save(folder, store.Run(recipe, module.tokenizer))  # type: ignore[arg-type]


def generator(cfg: DictConfig, data: ImageData, folder: Path) -> tuple[Task, Export]:
    """Return the task of training a generator on a trained tokenizer, and how it is written."""
    base = trained_tokenizer(cfg)
    check_sizes(base.tokenizer, base.recipe.schedule, data)
    backbone, spec = make_backbone(cfg, data, base)
    sampling = parse_sampling(plain(cfg.sampling), "sampling")
    cast(Backbone, backbone).head.check(sampling)
    recipe = Recipe(
        base.recipe.tokenizer, base.recipe.schedule, spec, data=describe(data), sampling=sampling
    )

    def run(module: nn.Module) -> store.Run:
        return store.Run(recipe, base.tokenizer, module)

    common: dict[str, Any] = {
        "backbone": backbone,
        "tokenizer": data.reader(base.tokenizer.requires_grad_(False), recipe.schedule),  # type: ignore[arg-type]
        "schedule": recipe.schedule,
        "sampler": lambda backbone: Pipeline(run(backbone))(
            range(min(10, len(data.classes))), number=10
        ),
        "drop_label": cfg.drop_label,
        "groups": cfg.groups,
    }
    task = distil(cfg, base, common) if cfg.teacher.run else GeneratorTask(**common)
    return task, lambda module: store.save(folder, run(module.backbone))  # type: ignore[arg-type]


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


if __name__ == "__main__":
    main()
