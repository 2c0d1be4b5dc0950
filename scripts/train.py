"""`var-train`: compose a training run from the configs and start it, or go on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from var import hub, store
from var.data.batches import Batches, loader
from var.data.images import ImageData
from var.errors import UserError
from var.pipeline import Pipeline
from var.recipe import Data, Recipe, build, parse_sampling
from var.schedule import Schedule
from var.scripts.command import command, made
from var.tokenizers.losses import Objective
from var.training.checkpoint import Checkpoints
from var.training.generator import GeneratorTask
from var.training.loop import Settings, Trainer
from var.training.task import Task
from var.training.tokenizer import TokenizerTask


@command("train")
def main(cfg: DictConfig) -> None:
    """Train what the configuration describes."""
    settings: Settings = made(cfg.trainer)
    folder = Path(cfg.runs) / cfg.name
    checkpoint = resume_from(cfg.resume, folder)
    data: ImageData = made(cfg.data.train)
    torch.manual_seed(settings.seed)  # of the initial weights
    task, export = (generator if cfg.backbone else tokenizer)(cfg, data, folder)
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
    spec: dict[str, Any] = {**plain(cfg.tokenizer), "scales": len(cfg.schedule)}
    recipe = Recipe(spec, Schedule.scales(plain(cfg.schedule)), data=describe(data))
    module: Any = build(spec, "tokenizer", device="cpu")
    check_sizes(module, recipe.schedule, data)
    task = TokenizerTask(
        tokenizer=module,
        objective=Objective(made(cfg.objective)),
        schedule=recipe.schedule,
        sample=data.__getitems__(range(10))[0],
        initialise=cfg.codebook.initialise,
        revive=cfg.codebook.revive,
    )
    return task, lambda module: store.save(folder, store.Run(recipe, module.tokenizer))  # type: ignore[arg-type]


def generator(cfg: DictConfig, data: ImageData, folder: Path) -> tuple[Task, Export]:
    """Return the task of training a generator on a trained tokenizer, and how it is written."""
    base = hub.find(cfg.tokenizer.run)
    if Schedule.scales(plain(cfg.schedule)) != base.recipe.schedule:
        raise UserError(
            f"schedule={cfg.schedule} is not that of tokenizer.run={cfg.tokenizer.run}, "
            f"{list(base.recipe.schedule.grids)}: leave schedule out, or train another tokenizer"
        )
    spec: dict[str, Any] = {
        "vocabulary": base.recipe.tokenizer["vocabulary"],
        "channels": base.recipe.tokenizer["channels"],
        "classes": len(data.classes),
        "ladder": plain(cfg.schedule),
        **plain(cfg.backbone),
    }
    check_sizes(base.tokenizer, base.recipe.schedule, data)
    sampling = parse_sampling(plain(cfg.sampling), "sampling")
    recipe = Recipe(
        base.recipe.tokenizer, base.recipe.schedule, spec, data=describe(data), sampling=sampling
    )

    def run(module: nn.Module) -> store.Run:
        return store.Run(recipe, base.tokenizer, module)

    task = GeneratorTask(
        backbone=build(spec, "backbone", device="cpu"),
        tokenizer=base.tokenizer.requires_grad_(False),
        schedule=recipe.schedule,
        sampler=lambda backbone: Pipeline(run(backbone))(
            range(min(10, len(data.classes))), number=10
        ),
        drop_label=cfg.drop_label,
    )
    return task, lambda module: store.save(folder, run(module.backbone))  # type: ignore[arg-type]


def check_sizes(tokenizer: Any, schedule: Schedule, data: ImageData) -> None:
    """Check that the schedule ends on the tokenizer's grid of the images.

    Raises:
        UserError: it does not; the message says what would.
    """
    side, rest = divmod(data.size, tokenizer.factor)
    if rest or schedule.grids[-1] != (side, side):
        raise UserError(
            f"schedule ends on a grid of {schedule.grids[-1]}, but {data.name} images of "
            f"{data.size} pixels have {data.size / tokenizer.factor:g} cells a side in this "
            "tokenizer: change the last entry of schedule, or tokenizer.multipliers"
        )


def describe(data: ImageData) -> Data:
    """Return what a run folder says of its data."""
    return Data(name=data.name, classes=tuple(data.classes), size=data.size)


def plain(node: Any) -> Any:
    """Return a config node as plain Python values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


if __name__ == "__main__":
    main()
