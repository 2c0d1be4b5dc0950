"""Canvases around canvases: what stays, what is made, and what the next scale sees of both."""

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.condition import Condition
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.random import Rng
from var.sampling import Sampling
from var.tokenizers.canvas import Framed, hole_mask, latents
from var.tokenizers.tokenizer import Canvas

SCHEDULE = tiny.SCHEDULE
SMOOTH = Sampling(guidance=2.0, smooth=True)


def tokens(seed: int = 0, rows: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(tiny.VOCABULARY, (rows, n), generator=rng) for n in SCHEDULE.sizes]


def blank(rows: int = 2) -> Canvas:
    return tiny.tokenizer().blank(rows, SCHEDULE)


def framed(hole: Tensor, seed: int = 0) -> Framed:
    return Framed(blank(), latents(blank(), tokens(seed)), hole)


def generated(canvas: Canvas, sampling: Sampling) -> Canvas:
    decoding, condition = Sequential(tiny.model()), Condition(torch.tensor([0, 1]))
    turns = decide(
        tiny.tokenizer(), SCHEDULE, condition, decoding, sampling, Rng.batch(0, 2), canvas=canvas
    )
    *_, last = turns
    return last


def test_latents_are_those_of_the_growing_canvas() -> None:
    found = latents(blank(), tokens())
    for k in range(len(SCHEDULE)):
        assert torch.equal(found[k], blank().write(*tokens()[: k + 1]).latent)


def test_without_a_hole_the_source_is_what_is_seen_and_what_is_left() -> None:
    canvas, source = framed(torch.zeros(4, 4)).write(*tokens(1)), blank().write(*tokens())
    assert torch.equal(canvas.latent, source.latent)
    assert torch.equal(canvas.read(SCHEDULE[:]), source.read(SCHEDULE[:]))
    assert canvas.done == len(SCHEDULE) and canvas.schedule == SCHEDULE


@pytest.mark.parametrize("sampling", [Sampling(), SMOOTH])
def test_a_hole_everywhere_is_an_ordinary_canvas(sampling: Sampling) -> None:
    ours, plain = (generated(c, sampling) for c in (framed(torch.ones(4, 4)), blank()))
    torch.testing.assert_close(ours.latent, plain.latent)


@pytest.mark.parametrize("sampling", [Sampling(), SMOOTH])
def test_nothing_that_is_drawn_reaches_out_of_the_hole(sampling: Sampling) -> None:
    hole = torch.zeros(2, 1, 4, 4)
    hole[0, :, :2], hole[1, :, 1:, 3:] = 1, 1
    inside = hole.bool().expand(-1, tiny.CHANNELS, -1, -1)
    canvas, source = generated(framed(hole), sampling), blank().write(*tokens())
    assert torch.equal(canvas.latent[~inside], source.latent[~inside])
    assert not torch.isclose(canvas.latent[inside], source.latent[inside]).any()


def test_the_next_scale_sees_the_frame() -> None:
    hole = torch.zeros(4, 4)
    hole[0, 0] = 1
    first, seen = framed(hole).write(tokens(1)[0]), SCHEDULE[1:2]
    source = blank().write(tokens()[0])
    assert torch.equal(first.read(seen)[:, 1:], source.read(seen)[:, 1:])
    assert not torch.equal(first.read(seen)[:, 0], source.read(seen)[:, 0])


def test_masks_of_any_size_are_taken_to_the_finest_grid() -> None:
    mask = torch.zeros(1, 1, 16, 12)
    mask[..., :8, 9:] = 1
    expected = torch.zeros(4, 4)
    expected[:2, 3:] = 1
    assert torch.equal(hole_mask(mask, SCHEDULE)[0, 0], expected)
