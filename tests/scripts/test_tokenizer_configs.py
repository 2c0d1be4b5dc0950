"""The published experiments that train a tokenizer: its size, its objective, its recipe."""

from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from var.published import CHECKPOINTS, blueprint
from var.recipe import build, parse_schedule
from var.scripts.command import made
from var.tokenizers.adversarial import Adversarial, PatchDiscriminator
from var.tokenizers.losses import Objective
from var.training.optim import published_rate
from var.training.settings import Settings

VQ = pytest.mark.parametrize("name", ["llamagen-vq16", "llamagen-vq8"])
IMAGENET = 1_281_167


def composed(*words: str) -> DictConfig:
    with initialize_config_module("var.configs", version_base="1.3"):
        return compose("train", [*words])


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


@VQ
def test_they_make_the_published_tokenizers(name: str) -> None:
    cfg, parts = composed(f"experiment={name}"), blueprint(name)
    spec, theirs = plain(cfg.tokenizer), dict(parts.tokenizer_spec or {})
    made_of = sum(weight.numel() for weight in build(spec, "tokenizer").parameters())
    assert made_of == CHECKPOINTS[name].parameters
    assert tuple(spec["multipliers"]) == tuple(theirs["multipliers"])
    for key in theirs.keys() - {"multipliers"}:
        assert spec[key] == theirs[key], key
    assert parse_schedule(plain(cfg.schedule), "schedule") == parts.schedule
    assert cfg.data.size == CHECKPOINTS[name].size


@VQ
def test_they_are_judged_as_published(name: str) -> None:
    objective = Objective(made(composed(f"experiment={name}").objective))
    assert list(objective.terms) == ["pixels", "perceptual", "adversarial"]
    pixels, perceptual, adversary = objective.terms.values()
    assert (pixels.l1, pixels.l2, perceptual.weight) == (0, 1, 1)
    assert isinstance(adversary, Adversarial)
    assert (adversary.weight, adversary.discriminator_weight, adversary.start) == (0.5, 0.5, 20000)
    assert (adversary.kind, adversary.wait, adversary.relative) == ("hinge", True, False)
    published = PatchDiscriminator().state_dict()
    found = adversary.discriminator.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in published.items()}


@VQ
def test_they_train_by_the_published_recipe(name: str) -> None:
    cfg = composed(f"experiment={name}")
    trainer: Settings = made(cfg.trainer)
    assert trainer.batch_size == 128 and trainer.steps == round(40 * IMAGENET / 128)
    assert trainer.weight_decay == trainer.weight_decay_end == 0
    assert (tuple(trainer.betas), trainer.clip, trainer.precision) == ((0.9, 0.95), 1.0, "bf16")
    rates = {
        published_rate(
            step,
            kind=trainer.rate_kind,
            peak=trainer.rate,
            warmup_steps=trainer.warmup_steps,
            total_steps=trainer.steps,
            final=trainer.final_rate,
        )
        for step in (0, 1000, trainer.steps - 1)
    }
    assert rates == {1e-4}
    assert (cfg.task.initialise, cfg.task.revive) == (False, 0)


def test_the_adversarial_objective_can_be_set_word_by_word() -> None:
    words = ("kind=vanilla", "adaptive=true", "discriminator.norm=group", "start=5")
    cfg = composed(
        "experiment=fashion-vq16",
        "objective=adversarial",
        *(f"objective.adversarial.{word}" for word in words),
    )
    adversary = Objective(made(cfg.objective)).terms["adversarial"]
    assert isinstance(adversary, Adversarial)
    assert (adversary.kind, adversary.relative, adversary.start) == ("vanilla", True, 5)
    assert "3.running_mean" not in adversary.discriminator.state_dict()
