"""What blocks of the documentation would fetch, or what would take hours: small, and here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from var import hub
from var.bench import machine
from var.evaluation.generation import Generation
from var.metrics.networks import Seen
from var.published import CHECKPOINTS, as_if_released, blueprint
from var.recipe import Data, Recipe, Spec
from var.sampling import Sampling
from var.schedule import Schedule
from var.store import Run
from var.untrained import untrained

_SAMPLES = 12  # that are measured, whatever their number
# What a model of a published kind is built with; its classes and scales stay as they are.
_SMALLER = {
    "depth": 1, "encoder_depth": 1, "decoder_depth": 1, "head_depth": 1, "blocks": 1,
    "heads": 2, "decoder_heads": 2, "head_width": 32, "hidden": 48, "vocabulary": 256, "grid": 4,
}  # fmt: skip
_WIDTHS = {"models": {"width": 64}, "tokenizers": {"width": 4, "groups": 2, "inner": 4}}
_VAE = {"block_out_channels": [4] * 5, "norm_num_groups": 2, "layers_per_block": 1}


def install(patch: pytest.MonkeyPatch) -> None:
    """Put everything in its place."""
    patch.setattr(hub, "find", functools.partial(find, hub.find))
    for home in ("inception.inception", "vision.vision"):
        patch.setattr(f"var.metrics.{home}", network)
    for name in ("vgg16", "alexnet"):
        patch.setattr(f"lpips.pretrained_networks.{name}", functools.partial(Maps, name))
    labels = Generation.labels.fget
    assert labels is not None
    patch.setattr(Generation, "labels", property(lambda self: thinned(labels(self))))
    sizes = functools.partial(machine.Sizes, rows=8, width=8, channels=2, side=8)
    patch.setattr(machine, "Sizes", sizes)


def find(original: Any, name: str | Path, **how: Any) -> Run:
    """Return a run as the hub does; of published weights random ones, of a model of small size."""
    plain = str(name).removeprefix("random/")
    if plain == str(name) and plain not in CHECKPOINTS:
        return original(name, **how)
    checkpoint = as_if_released(plain)
    # CoDe's refiners and drafters are VARs.
    parts = blueprint("var-d16" if checkpoint.system == "code" else plain)
    assert parts.tokenizer_spec and parts.schedule
    schedule, model = parts.schedule, parts.model_spec and smaller(parts.model_spec)
    if model and "grid" in model:
        schedule = Schedule.raster(model["grid"])
    recipe = Recipe(
        smaller(parts.tokenizer_spec),
        schedule,
        model,
        data=Data("imagenet", _classes(), checkpoint.size),
        sampling=Sampling(**checkpoint.sampling),
        decoding=checkpoint.decoding,
    )
    tokenizer = untrained(recipe.tokenizer, "the tokenizer")
    if recipe.backbone is None:
        return Run(recipe, tokenizer)
    dtype = how.get("dtype", torch.float32)
    return Run(recipe, tokenizer, untrained(recipe.backbone, "the model", dtype=dtype))


def smaller(spec: Spec) -> dict[str, Any]:
    """Return how to build a small module of the same kind."""
    known = _SMALLER | _WIDTHS[spec["_target_"].split(".")[1]]
    found = {key: known.get(key, value) if value else value for key, value in spec.items()}
    if "multipliers" in found:
        found["multipliers"] = [1 for _ in found["multipliers"]]
        found["groups"] = known["groups"]
    if "vae" in found:
        found["vae"] = {**found["vae"], **_VAE}
    return found


def thinned(labels: list[int]) -> list[int]:
    """Return some of the labels, of as many classes as there are."""
    return labels[:: max(1, len(labels) // _SAMPLES)][:_SAMPLES]


class Look(nn.Module):
    """A feature network that sees little: means of colours."""

    name, num_features, labelled = "FID", 12, False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))  # says on which device it is

    def forward(self, image: Tensor) -> Seen:
        features = nn.functional.adaptive_avg_pool2d(image.float(), 2).flatten(1)
        return Seen(features, features, features)


def network(*_: Any, **__: Any) -> Look:
    """Return the network, in place of those that would be fetched."""
    return Look()


class Maps(nn.Module):
    """Feature maps as LPIPS wants them, of a random network."""

    _CHANNELS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}

    def __init__(self, name: str, **_: Any) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, channels, 8, stride=8) for channels in self._CHANNELS[name]]
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [layer(image) for layer in self.layers]


@functools.cache
def _classes() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights  # slow to import

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
