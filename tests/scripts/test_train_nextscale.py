"""The published experiments of VAR and M-VAR: sizes, tokenizer, recipe."""

import inspect

import pytest

from tests.scripts.test_train_configs import (
    IMAGENET,
    backbone,
    composed,
    data_name,
    parameters,
    schedule,
)
from var.models.nextscale import NextScale
from var.published import CHECKPOINTS, as_if_released, blueprint
from var.recipe import parse_sampling
from var.sampling import Sampling
from var.scripts.command import made
from var.scripts.parts import plain
from var.training.settings import Settings

# Epochs, batch, rate for each 256 images, last rate, last weight decay, size of the gates.
SHORT = (200, 768, 1e-4, 0.1, 0.05, 1e-3)
MIDDLE = (250, 768, 1e-4, 0.1, 0.05, 1e-3)
LONG = (350, 768, 8e-5, 0.01, 0.05, 1e-4)
LARGE = (350, 1024, 8e-5, 0.01, 0.08, 1e-5)
RECIPES = {
    **{"var-d12": SHORT, "var-d16": SHORT, "var-d20": MIDDLE, "var-d24": LONG, "var-d30": LARGE},
    "var-d36-s": (350, 768, 8e-5, 0.01, 0.08, 5e-6),
    **{"mvar-d12": SHORT, "mvar-d16": SHORT, "mvar-d20": MIDDLE, "mvar-d24": LONG},
    "mvar-d32": LARGE,
}
EACH = pytest.mark.parametrize("name", RECIPES)


@EACH
def test_they_make_the_published_models_for_the_published_tokenizer(name: str) -> None:
    cfg, parts, released = composed(name), blueprint(name), as_if_released(name)
    model = backbone(cfg, vocabulary=4096, channels=32, classes=1000)
    # Of the smallest there are no weights.
    known = CHECKPOINTS[name].parameters if name in CHECKPOINTS else 133_186_960
    assert parameters(model) == known
    assert parts.schedule == schedule(cfg) and cfg.tokenizer.run == "var-vae"
    assert data_name(cfg) == "image_folder" and not cfg.data.flip
    assert cfg.data.size == released.size == 16 * schedule(cfg).grids[-1][0]
    spec, ours = parts.model_spec or {}, plain(cfg.backbone)
    shared = {key: spec[key] for key in ours.keys() & spec.keys()}
    shared["drop_path"] = pytest.approx(spec["drop_path"], abs=1e-4)
    assert {key: ours[key] for key in shared} == shared


@EACH
def test_they_recommend_what_the_checkpoints_do(name: str) -> None:
    sampling = parse_sampling(plain(composed(name).sampling), "sampling")
    assert sampling == Sampling(**as_if_released(name).sampling)


@EACH
def test_they_train_by_the_published_recipe(name: str) -> None:
    epochs, batch, rate, final, decay, gate = RECIPES[name]
    cfg = composed(name)
    trainer: Settings = made(cfg.trainer)
    epoch = IMAGENET / batch
    assert trainer.batch_size == batch and trainer.steps == round(epochs * epoch)
    assert trainer.warmup_steps == round(epochs / 50 * epoch) and trainer.warmup_start == 0.005
    assert trainer.rate == pytest.approx(rate * batch / 256)
    assert (trainer.rate_kind, trainer.final_rate) == ("lin0", final)
    assert (trainer.weight_decay, trainer.weight_decay_end) == (0.05, decay)
    assert (tuple(trainer.betas), trainer.clip, cfg.drop_label) == ((0.9, 0.95), 2.0, 0.1)
    default = inspect.signature(NextScale).parameters["init_gate"].default
    assert cfg.backbone.get("init_gate", default) == gate


def test_a_family_has_one_recipe() -> None:
    one, other = (plain(composed(name)) for name in ("var-d20", "mvar-d20"))
    assert {key for key in one if one[key] != other[key]} == {"name", "backbone"}
