"""Some of the images of a canvas, or joined ones, go on as they would have where they were."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family
from var.tokenizers.canvas import Framed, Kept, latents
from var.tokenizers.tokenizer import Canvas

INDEX = torch.tensor([2, 0])


def check(blank: Callable[[], Canvas], tokens: list[Tensor], done: int) -> None:
    schedule = blank().schedule
    whole, before = blank().write(*tokens), blank().write(*tokens[:done])
    for some in (before.rows(INDEX), before.rows(INDEX[:1]).joined(before.rows(INDEX[1:]))):
        assert type(some) is type(whole) and some.done == done and some.schedule == schedule
        after = some.write(*(group[INDEX] for group in tokens[done:]))
        assert torch.equal(after.read(schedule[:]), whole.read(schedule[:])[INDEX])
        torch.testing.assert_close(after.latent, whole.latent[INDEX])


@pytest.mark.parametrize("done", [0, 1, 3])
@tiny.families
def test_rows_of_a_canvas_go_on_alone(family: Family, done: int) -> None:
    schedule, tokenizer = family.schedule, family.tokenizer()
    tokens = [family.tokens(3, size) for size in schedule.sizes]
    check(lambda: tokenizer.blank(3, schedule), tokens, done)


@pytest.mark.parametrize("per_image", [True, False])
def test_what_stays_of_an_image_stays_of_its_row(per_image: bool) -> None:
    schedule, tokenizer = tiny.SCHEDULE, tiny.tokenizer()
    draw = torch.Generator().manual_seed(0)
    tokens, source = (
        [torch.randint(tiny.VOCABULARY, (3, n), generator=draw) for n in schedule.sizes]
        for _ in range(2)
    )
    rows = (3,) if per_image else ()
    keep = [torch.rand(*rows, n, generator=draw) < 0.5 for n in schedule.sizes]
    hole = (torch.rand(*(3, 1) if per_image else (), 4, 4, generator=draw) < 0.5).float()
    blank = tokenizer.blank(3, schedule)
    check(lambda: Kept(blank, source, keep), tokens, 2)
    check(lambda: Framed(blank, latents(blank, source), hole), tokens, 2)
    first = [group[:1] for group in source]  # one image for all rows
    check(lambda: Kept(blank, first, keep), tokens, 2)
    check(lambda: Framed(blank, latents(blank.rows(INDEX[:1]), first), hole), tokens, 2)
