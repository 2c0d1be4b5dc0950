"""Images decided several groups a turn follow the law of those decided one by one.

On models small enough to know the probability of every image. Seeds are fixed; of other ones each
test would raise a false alarm in one of 10 000 cases.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.decoding.laws import Streams, cells, doubt, exact, sampled, scales, table
from var.decoding import verify
from var.decoding.guesses import Guess, Known, likeliest, random
from var.decoding.jacobi import Jacobi
from var.decoding.sequential import Sequential
from var.sampling import Sampling

ALARM = 1e-4
CERTAIN = 1e-12
GUIDED = Sampling(guidance=(0.5, 2.0), top_k=3)
ENDING = Sampling(guidance=(2.0, 1.5), guided_groups=3, temperature=0.8, top_p=0.9)


def follows(
    decoding: Any, sampling: Sampling = GUIDED, count: int = 50_000, batch: int = 5000
) -> float:
    """Return the probability that samples are as far from their law by accident."""
    counts, _ = sampled(decoding, sampling, count=count, batch=batch)
    return doubt(counts, exact(decoding.model, sampling))


def test_one_by_one_they_follow_it() -> None:
    assert follows(Sequential(table()), count=20_000) > ALARM


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"window": 2}, 50_000),
        ({"window": 5}, 50_000),
        ({"window": 5, "test": "match"}, 15_000),
        ({"window": 5, "together": True}, 20_000),
        ({"window": 3, "together": True, "test": "match"}, 10_000),
        ({"window": 3, "guess": "left"}, 20_000),
        ({"window": 3, "guess": "sampled"}, 20_000),
        ({"window": 3, "guess": "above"}, 10_000),
        ({"window": 3, "guess": "likeliest"}, 10_000),
    ],
)
def test_several_at_a_time_they_follow_it(settings: dict[str, Any], count: int) -> None:
    assert follows(Jacobi(table(), **settings), count=count) > ALARM


def test_they_follow_it_where_guidance_ends_within_a_window() -> None:
    assert follows(Jacobi(table(), window=4), ENDING, count=10_000) > ALARM


@pytest.mark.parametrize("together", [False, True])
def test_they_follow_it_in_small_batches(together: bool) -> None:
    decoding = Jacobi(table(), window=4, together=together)
    assert follows(decoding, count=3000, batch=100) > ALARM


def test_a_transformers_images_follow_it() -> None:
    assert follows(Jacobi(cells(), window=3), Sampling(1.0), 5000) > ALARM


@pytest.mark.parametrize("window", [2, 3])
def test_images_decided_over_scales_follow_it(window: int) -> None:
    model = scales((1, 1), (2, 2), (2, 2), vocabulary=2)
    assert follows(Jacobi(model, window), Sampling(1.0), 10_000) > ALARM


def test_two_scales_at_a_time_follow_it() -> None:
    decoding = Jacobi(scales((1, 1), (2, 2)), window=2)
    assert follows(decoding, Sampling(1.0, top_k=2), 10_000) > ALARM


class Redrawing(Jacobi):
    """What takes the place of a refuted guess is simply drawn."""

    def _rest(self, p: Tensor, q: Tensor) -> Tensor:
        return p


class Doubting(Jacobi):
    """What is decided, but not by all rows, is put to the test again as what it was before."""

    def _recorded(self, p: Tensor, kept: Tensor) -> Tensor:
        assert self.state is not None and self.state.laws is not None
        return torch.where(kept[..., None], self.state.laws, p)


class Pretending(Jacobi):
    """Guesses are chosen, but said to be any."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.guesser = pretended


def pretended(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    _, flat, there = random(known, cells, uniform, vocabulary)
    if known.law is None:
        return torch.zeros_like(cells), flat, there
    return likeliest(known, cells, uniform, vocabulary)[0], flat, there


@pytest.mark.parametrize(
    "broken",
    [
        Redrawing(table(), window=3),
        Redrawing(table(), window=5),
        Doubting(table(), window=5, together=True),
        Pretending(table(), window=3),
    ],
    ids=lambda decoding: f"{type(decoding).__name__}-{decoding.window}",
)
def test_a_broken_rule_is_noticed(broken: Jacobi) -> None:
    assert follows(broken, count=10_000) < CERTAIN


def test_to_believe_all_guesses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of two: all but the last of them are what they were first.
    monkeypatch.setattr(
        verify, "stays", lambda guess, p, q, uniform: p.gather(-1, guess[..., None])[..., 0] > 0
    )
    assert follows(Jacobi(table(), window=2), count=10_000) < CERTAIN


def test_to_keep_what_is_impossible_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "stays", lambda guess, *_: torch.ones_like(guess) > 0)
    assert follows(Jacobi(table(), window=2), count=1000, batch=500) == 0


def test_scales_settled_without_a_remainder_are_noticed() -> None:
    broken = Redrawing(scales((1, 1), (2, 2), (2, 2), vocabulary=2), 3)
    assert follows(broken, Sampling(1.0), 10_000) < CERTAIN


def test_the_measure_of_doubt_is_even_where_there_is_nothing_to_doubt() -> None:
    law, rng = exact(table(), GUIDED), torch.Generator().manual_seed(0)
    found = []
    for _ in range(100):
        drawn = torch.multinomial(law, 5000, replacement=True, generator=rng)
        found.append(doubt(torch.bincount(drawn, minlength=len(law)).float(), law))
    shares = torch.tensor(found)
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(float((shares < level).float().mean()) - level) < 0.16
    assert doubt(law * 5000, law) > 0.99


def test_the_measure_of_doubt_is_that_of_the_tables() -> None:
    law = torch.full((2,), 0.5, dtype=torch.float64)
    assert doubt(torch.tensor([5165.0, 4835.0]), law) == pytest.approx(0.000965, rel=0.01)
    assert doubt(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 0.0]).double()) == 0


def test_the_quick_streams_are_as_random() -> None:
    numbers = Streams(0, 1000).uniform(4, 5)
    assert numbers.shape == (1000, 4, 5) and len(numbers.unique()) > 19_900
