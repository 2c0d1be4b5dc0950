"""Candidates on their way: how many are drawn together, and what is held of them."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_search import best, brightness
from var.condition import Condition
from var.errors import UserError
from var.pipeline import Pipeline


@pytest.fixture
def pipe(tiny_run: Any) -> Pipeline:
    return Pipeline(tiny_run)


def test_survivors_of_all_labels_go_on_together(pipe: Pipeline) -> None:
    sizes: list[int] = []

    def scorer(images: Tensor, condition: Condition) -> Tensor:
        sizes.append(len(images))
        return brightness(images, condition)

    best(pipe, 8, scorer, prune={1: 4, 2: 2}, batch_size=8)
    assert sizes == [8, 8, 8, 8, 4, 6], "of 24, 12 and 6 candidates, as soon as there are so many"


def test_images_are_held_no_longer_than_needed(pipe: Pipeline) -> None:
    seen: list[weakref.ref[Tensor]] = []

    def scorer(images: Tensor, condition: Condition) -> Tensor:
        assert sum(each() is not None for each in seen) <= 1
        seen.append(weakref.ref(images))
        return brightness(images, condition)

    best(pipe, 12, scorer, prune={1: 10}, batch_size=4, top=2)
    assert len(seen) == 9 + 8


def test_memory_running_out_halves_the_batch(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def cramped(images: Tensor, condition: Condition) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return brightness(images, condition)

    ours, plain = best(pipe, scorer=cramped, prune={2: 3}), best(pipe, prune={2: 3})
    assert torch.equal(ours.index, plain.index) and torch.equal(ours.cost, plain.cost)
    assert [record.args for record in caplog.records] == [(15, 7), (7, 3)]
    with pytest.raises(UserError, match="out of memory for a single image"):
        best(pipe, scorer=lambda images, condition: cramped(torch.cat([images] * 4), condition))
