"""`var-train`: compose a training run from the configs and start it, or go on with it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import gather_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from var import store
from var.data.batches import Batch, Batches, loader
from var.data.images import ImageData, check_pixels
from var.errors import UserError
from var.models.base import Backbone
from var.pipeline import Pipeline
from var.recipe import Recipe, parse_sampling, parse_schedule
from var.scripts import judge
from var.scripts.beginning import classes_of, make_backbone, numbered, subject
from var.scripts.command import command, made
from var.scripts.parts import (
    check_sizes,
    describe,
    distil,
    new_tokenizer,
    plain,
    trained_tokenizer,
)
from var.tokenizers.losses import Objective
from var.tokenizers.tokenizer import Tokenizer
from var.training import lora
from var.training.checkpoint import Checkpoints
from var.training.generator import GeneratorTask
from var.training.loop import Evaluate, Trainer
from var.training.parallel import alone
from var.training.settings import Settings
from var.training.task import Task
from var.unusable import UNUSABLE, read_unusable, write_unusable


@command("train")
def main(cfg: DictConfig) -> None:
    """Train what the configuration describes."""
    settings: Settings = made(cfg.trainer)
    folder = Path(cfg.runs) / cfg.name
    checkpoint = resume_from(cfg.resume, folder)
    data: ImageData = numbered(cfg, made(cfg.data.train))
    if checkpoint is not None:  # what was found before stays out, and on the list
        data.unusable.update(read_unusable(folder / UNUSABLE))
    torch.manual_seed(settings.seed)  # of the initial weights
    compose = generator if cfg.backbone or "run" in cfg.tokenizer else tokenizer
    work = compose(cfg, data, folder)
    with ExitStack() as opened:  # after an error too, readers end: Python would wait for them
        Trainer(
            task=work.task,
            data=lambda start, shard: opened.enter_context(
                closing(batches(data, settings, start, shard))
            ),
            first=lambda number: first(data, settings, number),
            folder=folder,
            settings=settings,
            export=work.export,
            evaluate=work.judge() if settings.evaluate_every else None,
            aside=lambda: report(data, folder),
            config=plain(cfg.trainer),
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
) -> Generator[Batch, None, None]:
    """Return the endless training batches of one process."""
    numbers = Batches(
        len(data), settings.batch_size, settings.seed, start, shard, settings.accumulation
    )
    return loader(data, numbers, pin=False if settings.cpu else None)


def first(data: ImageData, settings: Settings, number: int) -> tuple[Tensor, Tensor]:
    """Return so many of the first images and labels of a run, at most a batch of them."""
    numbers = next(iter(Batches(len(data), settings.batch_size, settings.seed)))
    return data.__getitems__(numbers[:number])


def report(data: ImageData, folder: Path) -> None:
    """Write which images were found to be unusable, by any process; all processes have to ask."""
    if found := dict(gather_object(list(data.unusable.items()))):
        alone(lambda: write_unusable(folder / UNUSABLE, found))


class Work(NamedTuple):
    """What is to be done.

    Attributes:
        task: what is trained.
        export: writes the run folder, of the module that was trained.
        judge: makes what measures that module every so often.
    """

    task: Task
    export: Callable[[nn.Module], None]
    judge: Callable[[], Evaluate]


def tokenizer(cfg: DictConfig, data: ImageData, folder: Path) -> Work:
    """Return the work of training a tokenizer."""
    tuning = ("tuning.layers", "tuning.lora.rank", "subject.prior")
    for name in ("groups", "teacher.run", *tuning):
        if OmegaConf.select(cfg, name) is not None:
            raise UserError(f"{name} is for generators: leave it out, or choose a backbone")
    check_pixels(data, "training a tokenizer")
    base = new_tokenizer(cfg)
    recipe, schedule = replace(base.recipe, data=describe(data)), base.recipe.schedule
    check_sizes(base.tokenizer, schedule, data)
    if cfg.task.train != "all" and not cfg.init.run:
        raise UserError(
            f"task.train={cfg.task.train} leaves the rest as it is: name a run by init.run=…"
        )
    task = made(cfg.task)(
        tokenizer=base.tokenizer,
        objective=Objective(made(cfg.objective)),
        schedule=schedule,
        sample=data.__getitems__(range(10))[0],
        ladders=[parse_schedule(ladder, "task.ladders") for ladder in plain(cfg.task.ladders)],
        initialise=cfg.task.initialise and not cfg.init.run,
    )

    def export(module: nn.Module) -> None:
        store.save(folder, store.Run(recipe, module.tokenizer))  # type: ignore[arg-type]

    return Work(task, export, lambda: judge.of_tokenizer(cfg, schedule))


def generator(cfg: DictConfig, data: ImageData, folder: Path) -> Work:
    """Return the work of training a generator on a trained tokenizer."""
    base = trained_tokenizer(cfg)
    check_sizes(base.tokenizer, base.recipe.schedule, data)
    backbone, spec = make_backbone(cfg, data, base)
    sampling = parse_sampling(plain(cfg.sampling), "sampling")
    cast(Backbone, backbone).head.check(sampling)
    recipe = Recipe(
        base.recipe.tokenizer, base.recipe.schedule, spec, data=describe(data), sampling=sampling
    )

    def run(module: nn.Module) -> store.Run:
        return store.Run(recipe, base.tokenizer, lora.merged(module))

    def export(module: nn.Module) -> None:
        store.save(folder, run(module.backbone))  # type: ignore[arg-type]
        lora.save(module.backbone, folder / "adapter")  # type: ignore[arg-type]

    shown = classes_of(data)
    common: dict[str, Any] = {
        "backbone": backbone,
        "tokenizer": data.reader(base.tokenizer.requires_grad_(False), recipe.schedule),  # type: ignore[arg-type]
        "schedule": recipe.schedule,
        "sampler": lambda backbone: Pipeline(run(backbone))(shown[:10], number=10),
        "drop_label": cfg.drop_label,
        "groups": cfg.groups,
    }
    if cfg.subject.prior is not None:
        task = subject(cfg, base, data, common)
    else:
        task = distil(cfg, base, common) if cfg.teacher.run else GeneratorTask(**common)
    tokens = cast(Tokenizer, base.tokenizer)
    return Work(task, export, lambda: judge.of_generator(cfg, tokens, recipe.schedule, run))


if __name__ == "__main__":
    main()
