"""The published experiments of M-VAR: sizes, tokenizer, recipe."""

import inspect

import pytest

from tests.scripts.test_train_configs import (
    IMAGENET,
    SIZES,
    backbone,
    composed,
    data_name,
    parameters,
    schedule,
)
from var.models.mvar import MVAR
from var.published import CHECKPOINTS, blueprint
from var.recipe import parse_sampling
from var.sampling import Sampling
from var.scripts.command import made
from var.scripts.parts import plain
from var.training.loop import Settings

# Depth to epochs, batch, rate for each 256 images, last rate, last weight decay, size of the gates.
RECIPES = {
    12: (200, 768, 1e-4, 0.1, 0.05, 1e-3),
    16: (200, 768, 1e-4, 0.1, 0.05, 1e-3),
    20: (250, 768, 1e-4, 0.1, 0.05, 1e-3),
    24: (350, 768, 8e-5, 0.01, 0.05, 1e-4),
    32: (350, 1024, 8e-5, 0.01, 0.08, 1e-5),
}
DEPTHS = pytest.mark.parametrize("depth", RECIPES)


@DEPTHS
def test_they_make_the_published_models_for_the_published_tokenizer(depth: int) -> None:
    cfg, name = composed(f"mvar-d{depth}"), f"mvar-d{depth}"
    model = backbone(cfg, vocabulary=4096, channels=32, classes=1000)
    assert parameters(model) == CHECKPOINTS[name].parameters
    parts = blueprint(name)
    assert parts.schedule == schedule(cfg) and cfg.tokenizer.run == "var-vae"
    assert SIZES[data_name(cfg)] == cfg.data.size == 256 and not cfg.data.flip
    spec = parts.model_spec or {}
    ours = plain(cfg.backbone)
    rounded = {"drop_path": pytest.approx(spec["drop_path"], abs=1e-4)}
    assert {key: ours[key] for key in ours.keys() & spec.keys()} == {
        **{key: spec[key] for key in ours.keys() & spec.keys()},
        **rounded,
    }


@DEPTHS
def test_they_recommend_what_the_checkpoints_do(depth: int) -> None:
    sampling = parse_sampling(plain(composed(f"mvar-d{depth}").sampling), "sampling")
    assert sampling == Sampling(**CHECKPOINTS[f"mvar-d{depth}"].sampling)


@DEPTHS
def test_they_train_by_the_published_recipe(depth: int) -> None:
    epochs, batch, rate, final, decay, gate = RECIPES[depth]
    cfg = composed(f"mvar-d{depth}")
    trainer: Settings = made(cfg.trainer)
    epoch = IMAGENET / batch
    assert trainer.batch_size == batch and trainer.steps == round(epochs * epoch)
    assert trainer.warmup_steps == round(epochs / 50 * epoch) and trainer.warmup_start == 0.005
    assert trainer.rate == pytest.approx(rate * batch / 256)
    assert (trainer.rate_kind, trainer.final_rate) == ("lin0", final)
    assert (trainer.weight_decay, trainer.weight_decay_end) == (0.05, decay)
    assert (tuple(trainer.betas), trainer.clip, cfg.drop_label) == ((0.9, 0.95), 2.0, 0.1)
    default = inspect.signature(MVAR).parameters["init_gate"].default
    assert cfg.backbone.get("init_gate", default) == gate
