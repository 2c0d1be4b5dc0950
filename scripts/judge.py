"""What is measured every so often while something is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from accelerate.state import PartialState
from omegaconf import DictConfig
from torch import Tensor, nn

from var import judging, store
from var.data.images import ImageData
from var.devices import share
from var.errors import UserError
from var.metrics.images import Likeness
from var.pipeline import Pipeline
from var.random import Rng
from var.schedule import Schedule
from var.scripts.beginning import classes_of, numbered
from var.scripts.command import check_least, made
from var.tokenizers.tokenizer import Tokenizer
from var.training.loop import Evaluate


class Reference:
    """Test images, and what tells how much others are like them.

    Args:
        cfg: of the training run: `data.test`, `features`, `evaluation`.

    Raises:
        UserError: there are no test images, or a number makes no sense.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_least(cfg.evaluation, {"images": 1, "batch_size": 1})
        if "test" not in cfg.data:
            raise UserError(
                "trainer.evaluate_every needs test images, which this data has none of: train on "
                "images, or measure checkpoints by var-evaluate"
            )
        # What cannot be read is left out here, not replaced: as by var-evaluate.
        self.data: ImageData = numbered(cfg, made(cfg.data.test)).plain()
        self.network = made(cfg.features) if cfg.features else None
        self.batch_size = cfg.evaluation.batch_size
        self.images = min(cfg.evaluation.images, len(self.data))
        self.likeness: Likeness | None = None

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Rng]]:
        """Yield this process's share of images, labels and their streams.

        They are spread evenly over the test images; noise is that of the image, whoever looks.
        """
        state = PartialState()
        mine = share(self.images, state.process_index, state.num_processes)
        own = [i * len(self.data) // self.images for i in mine]
        for start in range(0, len(own), self.batch_size):
            numbers = own[start : start + self.batch_size]
            image, label = self.data.__getitems__(numbers)
            if len(image):
                yield image.to(device), label.to(device), Rng(numbers[: len(image)], device)

    def pictures(self, device: torch.device) -> Iterator[Tensor]:
        """Yield the images of `batches`."""
        return (image for image, _, _ in self.batches(device))


def of_tokenizer(cfg: DictConfig, schedule: Schedule) -> Evaluate:
    """Return what measures reconstructions of a tokenizer that is trained."""
    reference = Reference(cfg)

    def measure(module: nn.Module) -> dict[str, float]:
        tokenizer, device = cast(Any, module).tokenizer, device_of(module)
        likeness = Likeness(reference.network.to(device)) if reference.network else None
        pictures = reference.pictures(device)
        return told(judging.reconstructions(tokenizer, schedule, pictures, device, likeness))

    return measure


def of_generator(
    cfg: DictConfig, tokenizer: Tokenizer, schedule: Schedule, run: Callable[[nn.Module], store.Run]
) -> Evaluate:
    """Return what measures the loss and the samples of a generator that is trained.

    Args:
        cfg: of the run.
        tokenizer, schedule: what it is trained on.
        run: what makes a run of its backbone.
    """
    reference = Reference(cfg)

    def measure(module: nn.Module) -> dict[str, float]:
        backbone, device = cast(Any, module).backbone, device_of(module)
        batches = reference.batches(device)
        figures = judging.losses(backbone, tokenizer, schedule, batches, device, cfg.groups)
        if reference.network is not None:
            figures |= samples(reference, Pipeline(run(backbone)), device)
        return told(figures)

    return measure


def samples(reference: Reference, pipe: Pipeline, device: torch.device) -> dict[str, float]:
    """Return the figures of as many samples as there are test images, evenly of all classes."""
    if reference.likeness is None:
        reference.likeness = Likeness(reference.network.to(device))  # type: ignore[union-attr]
        reference.likeness.real(reference.pictures(device))
    state, number = PartialState(), reference.images
    seeds = share(number, state.process_index, state.num_processes)
    shown = classes_of(reference.data)
    ids = [shown[seed * len(shown) // number] for seed in seeds]
    return judging.resemblance(pipe, reference.likeness, ids, seeds, reference.batch_size)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module is on."""
    return next(module.parameters()).device


def told(figures: dict[str, Any]) -> dict[str, float]:
    """Return figures by the names under which a run records them, one for each scale."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, list):
            stem = name.removesuffix("_per_scale")
            flat |= {f"test/{stem}/scale{k}": each for k, each in enumerate(value)}
        else:
            flat[f"test/{name}"] = value
    return flat
