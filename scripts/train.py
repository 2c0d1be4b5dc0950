"""`var-train`: compose a training run from the configs and start it, or go on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from var import store
from var.data.batches import Batches, loader
from var.data.images import ImageData, check_pixels
from var.errors import UserError
from var.models.base import Backbone
from var.pipeline import Pipeline
from var.recipe import Recipe, build, keywords, parse_sampling, parse_schedule
from var.scripts.command import command, made
from var.scripts.parts import (
    check_sizes,
    describe,
    distil,
    kind,
    make_backbone,
    plain,
    trained_tokenizer,
)
from var.tokenizers.losses import Objective
from var.training.checkpoint import Checkpoints
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


if __name__ == "__main__":
    main()
