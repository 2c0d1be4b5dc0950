"""Scorers: what they are told of an image, and what the one that there is refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_search import LABELS, best, candidates, close
from var.condition import Condition
from var.decoding.base import Turn
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.metrics.networks import Seen
from var.pipeline import Pipeline
from var.pixels import to_uint8
from var.random import Rng
from var.scorers import ClassLogProbability
from var.search import best_of
from var.tokenizers.tokenizer import Canvas


@pytest.fixture
def pipe(tiny_run: Any) -> Pipeline:
    return Pipeline(tiny_run)


class Looker(nn.Module):
    """A network that takes dark images for cats, and bright ones for dogs."""

    name, labelled, num_features, classes = "FD-Looker", True, 1, 3

    def forward(self, image: Tensor) -> Seen:
        assert image.dtype == torch.uint8 and image.shape[2:] == (8, 8)
        bright = image.float().mean(dim=(1, 2, 3)) / 255
        logits = torch.stack([1 - bright, bright, *[0 * bright] * (self.classes - 2)], dim=1)
        return Seen(bright[:, None], logits * 9)


class Undrawn(Sequential):
    """Draws nothing."""

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        raise AssertionError("something is drawn")


def test_a_scorer_is_told_the_text_of_each_image(pipe: Pipeline) -> None:
    wanted = torch.tensor([1.0, -1.0])  # a bright one, a dark one
    condition = Condition(torch.zeros(2, dtype=torch.int64), wanted[:, None, None].expand(2, 3, 4))

    def told(images: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        return images.mean(dim=(1, 2, 3)) * condition.text.mean(dim=(1, 2))

    light = pipe([0, 0], number=5, seed=3).mean(dim=(1, 2, 3)).view(2, 5)
    found = best_of(pipe, condition, number=5, scorer=told, seed=3, batch_size=4)
    assert found.index.flatten().tolist() == [light[0].argmax(), light[1].argmin()]
    with pytest.raises(UserError, match="FD-Looker tells classes, and these images show texts"):
        best_of(pipe, condition, number=2, scorer=ClassLogProbability(Looker()))


def test_a_classifier_scores_by_the_log_probability_of_the_label(pipe: Pipeline) -> None:
    images, labels = candidates(pipe)[:, 0], Condition(torch.tensor(LABELS))
    logits = Looker()(to_uint8(images)).logits
    assert logits is not None
    close(ClassLogProbability(Looker())(images, labels), logits.log_softmax(1).diag())
    light = to_uint8(candidates(pipe)).float().mean(dim=(2, 3, 4))
    found = best(pipe, scorer=ClassLogProbability(Looker()))
    assert found.index[:2, 0].tolist() == [light[0].argmin(), light[1].argmax()]


def test_what_cannot_be_scored_is_not_drawn(pipe: Pipeline) -> None:
    def refused(message: str, label: int = 0, classes: int = 3) -> None:
        looker = Looker()
        looker.classes = classes
        given: dict[str, Any] = {
            "scorer": ClassLogProbability(looker),
            "decoding": Undrawn(pipe.model),
        }
        with pytest.raises(UserError, match=message):
            best_of(pipe, Condition(torch.tensor([0, label])), number=2, **given)

    for label in (-1, 3):
        refused(f"label {label} cannot be scored: FD-Looker tells classes 0..2", label)
    for classes in (2, 10):
        refused(f"FD-Looker tells {classes} classes, this model makes images of 3", 0, classes)


def test_who_tells_no_classes_does_not_score() -> None:
    other, nothing = Looker(), {}
    other.labelled = False
    for network, name in (
        (other, "FD-Looker"),
        (nothing, "features=none"),
        (None, "features=none"),
    ):
        with pytest.raises(UserError, match=f"^{name} does not tell the classes of the data"):
            ClassLogProbability(network)  # type: ignore[arg-type]
