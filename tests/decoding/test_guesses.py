"""First guesses: where they come from, and that the law they come with is the one they follow."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from var.decoding.guesses import GUESSERS, Known, guessed, point

GRID, V = (3, 4), 6
GUESSES = pytest.mark.parametrize("name", GUESSERS)


def known(count: list[int], law: Tensor | None = None) -> Known:
    """Return what is known of as many images: the same tokens, more or less of them."""
    tokens = torch.randint(V, (1, 12), generator=torch.Generator().manual_seed(0))
    return Known(tokens.repeat(len(count), 1), torch.tensor(count), law, GRID)


def cells(start: int, stop: int, rows: int = 1) -> Tensor:
    return torch.arange(start, stop).expand(rows, -1)


def prediction(rows: int) -> Tensor:
    """Return a law (B, 1, V) of each image, one id impossible."""
    weights = torch.rand(rows, 1, V, generator=torch.Generator().manual_seed(1)) + 0.1
    weights[..., 2] = 0
    return weights / weights.sum(dim=-1, keepdim=True)


@GUESSES
@pytest.mark.parametrize("first", [True, False])
def test_guesses_follow_the_law_they_come_with(name: str, first: bool) -> None:
    rows, here = 6000, cells(5, 9, 6000)
    facts = known([5] * rows, None if first else prediction(1).expand(rows, -1, -1))
    uniform = ((torch.arange(rows) + 0.5) / rows)[:, None].expand(-1, 4)
    ids, laws = guessed(GUESSERS[name], facts, here, uniform, V)
    assert ids.shape == (rows, 4) and laws.shape == (rows, 4, V)
    assert torch.equal(laws, laws[:1].expand(rows, -1, -1)), "chance has no part in it"
    often = torch.nn.functional.one_hot(ids, V).float().mean(dim=0)
    torch.testing.assert_close(often, laws[0], rtol=0, atol=2 / rows)
    torch.testing.assert_close(laws.sum(dim=-1), torch.ones(rows, 4))


@GUESSES
def test_the_ends_of_the_uniform_numbers_guess_ids_that_are_possible(name: str) -> None:
    here, uniform = cells(4, 12), torch.tensor([[0.0, 1 - 2**-24] * 4])
    ids, laws = guessed(GUESSERS[name], known([4], prediction(1)), here, uniform, V)
    assert bool((laws.gather(-1, ids[..., None]) > 0).all())
    large, _ = guessed(GUESSERS["random"], known([4]), here, uniform, 100_000)
    assert large[0, :2].tolist() == [0, 99_999]


def test_random_guesses_are_any_code() -> None:
    uniform = (torch.arange(V)[None] + 0.5) / V
    ids, laws = guessed(GUESSERS["random"], known([2]), cells(2, 2 + V), uniform, V)
    assert ids[0].tolist() == list(range(V))
    torch.testing.assert_close(laws, torch.full((1, V, V), 1 / V))


def test_what_is_left_of_a_cell_is_repeated() -> None:
    facts, here = known([5, 7]), cells(5, 8, 2)
    ids, laws, there = GUESSERS["left"](facts, here, torch.zeros(2, 3), V)
    tokens = facts.tokens[0].tolist()
    assert ids[0].tolist() == [tokens[4]] * 3, "the last one known stands for those that are not"
    assert ids[1].tolist() == [tokens[4], tokens[5], tokens[6]]
    assert torch.equal(laws, point(ids, V)) and bool(there.all())


def test_what_is_above_a_cell_is_repeated() -> None:
    facts, here = known([6]), cells(6, 12)
    ids, laws, there = GUESSERS["above"](facts, here, torch.zeros(1, 6), V)
    tokens = facts.tokens[0].tolist()
    assert ids[0].tolist() == [*tokens[2:6], tokens[5], tokens[5]]
    assert torch.equal(laws, point(ids, V)) and bool(there.all())


def test_what_is_predicted_left_of_a_cell_is_drawn_from_or_taken() -> None:
    law = prediction(2)
    facts, here = known([5, 6], law), cells(6, 8, 2)
    uniform = torch.tensor([[0.0, 1 - 2**-24]] * 2)
    ids, laws, there = GUESSERS["sampled"](facts, here, uniform, V)
    assert torch.equal(laws, law.expand(-1, 2, -1)) and bool(there.all())
    assert ids.tolist() == [[0, V - 1]] * 2
    ids, laws, there = GUESSERS["likeliest"](facts, here, uniform, V)
    assert torch.equal(ids, law.argmax(dim=-1).expand(-1, 2)) and bool(there.all())
    assert torch.equal(laws, point(ids, V))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("left", {0, 4, 8}),
        ("sampled", {0, 4, 8}),
        ("likeliest", {0, 4, 8}),
        ("above", {0, 1, 2, 3}),
    ],
)
def test_cells_without_a_neighbour_are_guessed_at_random(name: str, missing: set[int]) -> None:
    facts, here = known([1], prediction(1)), cells(0, 12)
    uniform = torch.full((1, 12), 0.4)
    *_, there = GUESSERS[name](facts, here, uniform, V)
    assert set((~there).nonzero()[:, 1].tolist()) == missing
    ids, laws = guessed(GUESSERS[name], facts, here, uniform, V)
    anything, flat = guessed(GUESSERS["random"], facts, here, uniform, V)
    for cell in missing:
        assert ids[0, cell] == anything[0, cell] and torch.equal(laws[0, cell], flat[0, cell])


@pytest.mark.parametrize("name", ["sampled", "likeliest"])
def test_before_anything_is_predicted_it_is_guessed_at_random(name: str) -> None:
    facts, here, uniform = known([0]), cells(0, 5), torch.rand(1, 5)
    ours = guessed(GUESSERS[name], facts, here, uniform, V)
    random = guessed(GUESSERS["random"], facts, here, uniform, V)
    assert torch.equal(ours[0], random[0]) and torch.equal(ours[1], random[1])


@GUESSES
def test_images_are_guessed_each_for_itself(name: str) -> None:
    law, uniform = prediction(3), torch.rand(3, 5, generator=torch.Generator().manual_seed(2))
    facts, here = known([4, 6, 5], law), cells(6, 11, 3)
    ids, laws = guessed(GUESSERS[name], facts, here, uniform, V)
    for row in range(3):
        one = slice(row, row + 1)
        alone = Known(facts.tokens[one], facts.count[one], law[one], GRID)
        ours = guessed(GUESSERS[name], alone, here[one], uniform[one], V)
        assert torch.equal(ours[0], ids[one]) and torch.equal(ours[1], laws[one])


@GUESSES
def test_neighbours_are_known_on_a_raster_only(name: str) -> None:
    facts = replace(known([4], prediction(1)), grid=None)
    if name == "random":
        return
    with pytest.raises(ValueError, match="raster only"):
        guessed(GUESSERS[name], facts, cells(4, 6), torch.zeros(1, 2), V)
