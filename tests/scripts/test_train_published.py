"""What the published experiments say of themselves in comments follows from their numbers."""

import re
from typing import Any

import pytest
from omegaconf import DictConfig

from tests.scripts.test_train_configs import (
    FOLDER,
    IMAGENET,
    NAMES,
    backbone,
    composed,
    parameters,
)
from var.published import blueprint
from var.recipe import build
from var.scripts.parts import plain

TEXTS = {name: (FOLDER / f"{name}.yaml").read_text() for name in NAMES}
PUBLISHED = [name for name, text in TEXTS.items() if "on ImageNet" in text]
EACH = pytest.mark.parametrize("name", PUBLISHED)


def told(name: str) -> str:
    """Return what an experiment says at its head, in one line."""
    return " ".join(line[2:] for line in TEXTS[name].splitlines() if line.startswith("# "))


def size(cfg: DictConfig) -> int:
    """Return the parameters of what an experiment trains."""
    if not cfg.backbone:
        return parameters(build(plain(cfg.tokenizer), "tokenizer"))
    tokenizer: Any = build(blueprint(cfg.tokenizer.run).tokenizer_spec or {}, "tokenizer")
    return parameters(backbone(cfg, **tokenizer.terms, classes=1000))


@EACH
def test_the_size_is_that_of_the_model(name: str) -> None:
    said = re.search(r" (\d+) M parameters", told(name))
    assert said and said[1] == f"{size(composed(name)) / 1e6:.0f}"


@EACH
def test_steps_follow_from_epochs_and_batch(name: str) -> None:
    trainer = composed(name).trainer
    steps = IMAGENET / trainer.batch_size
    for batch, epochs in re.findall(r"batch (\d+), (\d+) epochs", told(name)):
        assert (trainer.batch_size, trainer.steps) == (int(batch), round(int(epochs) * steps))
    for key, epochs in re.findall(r"^  (\w+): \d+ +# (\d+) epochs", TEXTS[name], re.MULTILINE):
        assert trainer[key] == round(int(epochs) * steps), key


@EACH
def test_rates_follow_from_the_batch(name: str) -> None:
    trainer = composed(name).trainer
    for base in re.findall(r"^  rate: .* # (\S+) for each 256 images", TEXTS[name], re.MULTILINE):
        assert trainer.rate == pytest.approx(float(base) * trainer.batch_size / 256)


@EACH
def test_what_is_expected_is_told_with_its_settings(name: str) -> None:
    # Of the smallest VAR nothing was published.
    expected = "no published figures" if name == "var-d12" else r"Expected \(.*\): .*FID"
    assert re.search(expected, told(name))
    assert f"--num_processes 8 -m var.scripts.train experiment={name} " in told(name)


def test_there_are_many() -> None:
    assert len(PUBLISHED) >= 21
    assert sum(" epochs" in TEXTS[name] for name in PUBLISHED) >= 14
