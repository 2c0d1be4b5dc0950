"""The test of guesses: whatever they were drawn from, what is decided is distributed as wanted.

Laws are computed with the product's own rule, not estimated: a guess stays with the share of
uniform numbers under which it does, and the remainder is what the others become.
"""

from math import fsum

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from var.decoding.verify import draw, remainder, run_length, stays

GRID = 1 << 24  # uniform float32 numbers are k / GRID
few = settings(max_examples=30)


def staying(p: Tensor, q: Tensor) -> Tensor:
    """Return with which probability each guess stays, (V,): the share of k / GRID that let it."""
    ids = torch.arange(len(p))[None]
    p, q = p.expand(1, len(p), -1), q.expand(1, len(q), -1)
    low, high = torch.zeros_like(ids), torch.full_like(ids, GRID)
    for _ in range(25):  # the first k that does not
        middle = (low + high) // 2
        good = stays(ids, p, q, middle / GRID) & (low < high)
        low, high = torch.where(good, middle + 1, low), torch.where(good, high, middle)
    return low[0] / GRID


def emitted(p: Tensor, q: Tensor) -> Tensor:
    """Return the law (V,) float64 of what is decided where guesses are drawn from q."""
    stay, rest = staying(p, q).double(), remainder(p, q).double()
    guess = q.double()
    return guess * stay + (guess * (1 - stay)).sum() * rest / rest.sum()


def law(*weights: float) -> Tensor:
    weighed = torch.tensor(weights)
    return weighed / weighed.sum()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two laws of one vocabulary: zeros and all magnitudes among them."""
    size = draw(st.integers(2, 12))
    weight = st.one_of(st.just(0.0), st.floats(2**-18, 1.0), st.just(1.0))
    weights = st.lists(weight, min_size=size, max_size=size).filter(any)
    return law(*draw(weights)), law(*draw(weights))


@few
@given(pairs())
def test_what_is_decided_is_distributed_as_wanted(laws: tuple[Tensor, Tensor]) -> None:
    p, q = laws
    torch.testing.assert_close(emitted(p, q), p.double(), rtol=0, atol=1e-6)
    # And that with as few surprises as can be.
    likely = (p / q.clamp(min=1e-30)).clamp(max=1)
    torch.testing.assert_close(staying(p, q)[q > 0], likely[q > 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        pytest.param(law(1, 2, 3, 4), law(0, 1, 0, 0), id="a point is guessed"),
        pytest.param(law(0, 0, 1), law(2, 1, 1), id="a point is wanted"),
        pytest.param(law(0, 1, 0), law(0, 0, 1), id="another point"),
        pytest.param(law(1, 1, 0, 0), law(0, 0, 1, 3), id="nothing in common"),
        pytest.param(law(1, 2, 4), law(1, 2, 4), id="the same"),
        pytest.param(law(1, 2, 4), law(1, 2, 4) * (1 + 2**-23), id="less for rounding"),
        pytest.param(law(1, 2, 4), law(1, 2, 4) * (1 - 2**-23), id="more for rounding"),
        pytest.param(law(5, 3, 2), law(2, 3, 5), id="the other way round"),
        pytest.param(law(*range(5000)), law(*range(5000, 0, -1)), id="large"),
    ],
)
def test_odd_laws_are_followed_too(p: Tensor, q: Tensor) -> None:
    torch.testing.assert_close(emitted(p, q), p.double(), rtol=0, atol=1e-6)


@few
@given(pairs())
def test_a_law_that_is_as_it_was_refutes_nothing(laws: tuple[Tensor, Tensor]) -> None:
    p, _ = laws
    assert bool((staying(p, p)[p > 0] == 1).all())


@few
@given(pairs())
def test_impossible_ids_neither_stay_nor_take_a_place(laws: tuple[Tensor, Tensor]) -> None:
    p, q = laws
    rest = remainder(p, q)
    assert bool((staying(p, q)[p == 0] == 0).all()) and bool((rest[p == 0] == 0).all())
    assert bool((rest >= 0).all())
    torch.testing.assert_close(rest.sum(), torch.tensor(1.0))


def test_a_remainder_lost_to_rounding_is_what_was_wanted() -> None:
    p = law(1, 2, 3)
    assert torch.equal(remainder(p, p), p)
    rows = remainder(torch.stack([p, p]), torch.stack([p, law(3, 2, 1)]))
    assert torch.equal(rows[0], p) and torch.equal(rows[1], law(0, 0, 1))


def test_the_rule_is_not_fulfilled_by_accident() -> None:
    p, q = law(5, 3, 2), law(2, 3, 5)
    always = q.double()
    wrong = q * staying(p, q) + (q * (1 - staying(p, q))).sum() * p
    assert not torch.allclose(always, p.double(), atol=0.1)
    assert not torch.allclose(wrong, p, atol=0.05)


@few
@given(pairs(), st.integers(0, GRID - 1))
def test_draws_invert_the_cumulative_law(laws: tuple[Tensor, Tensor], k: int) -> None:
    p, uniform = laws[0], torch.tensor(k / GRID)
    drawn, target = int(draw(p, uniform)), k / GRID * fsum(p.tolist())
    assert p[drawn] > 0
    assert fsum(p[:drawn].tolist()) <= target + 1e-12
    assert target < fsum(p[: drawn + 1].tolist()) + 1e-12


@few
@given(pairs(), st.sampled_from([1e-20, 1.0, 3.0, 1e20]))
def test_draws_do_not_mind_what_a_law_sums_to(laws: tuple[Tensor, Tensor], scale: float) -> None:
    p, uniform = laws[0], (torch.arange(50) + 0.5) / 50
    expected = draw(p.expand(50, -1), uniform)
    edges = (p.double().cumsum(0)[None] - uniform[:, None]).abs().amin(dim=1) < 1e-6
    assert bool(((draw(scale * p.expand(50, -1), uniform) == expected) | edges).all())


@few
@given(pairs())
def test_the_ends_of_the_uniform_numbers_are_the_ends_of_what_is_possible(
    laws: tuple[Tensor, Tensor],
) -> None:
    for p in laws:
        possible = p.nonzero()[:, 0]
        ends = torch.tensor([0.0, 1 - 1 / GRID])
        first, last = draw(p.expand(2, -1), ends).tolist()
        assert first == possible[0]
        if p[possible[-1]] > 1e-6:
            assert last == possible[-1]
        double = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        assert draw(p.expand(2, -1), double).tolist() == possible[[0, -1]].tolist()


def test_each_id_is_drawn_as_often_as_it_is_likely() -> None:
    p, count = law(3, 0, 1, 2.5, 1e-3, 0), 40_000
    drawn = draw(p.expand(count, -1), (torch.arange(count) + 0.5) / count)
    often = torch.bincount(drawn, minlength=len(p)) / count
    torch.testing.assert_close(often, p, rtol=0, atol=1.5 / count)
    assert bool((often[p == 0] == 0).all())


def test_the_tail_of_a_large_vocabulary_is_drawn() -> None:
    weights, tail = torch.full((51,), 1e-8), torch.arange(50, dtype=torch.float64)
    weights[0] = 1.0  # in float32 many of the sums behind it are the same
    uniform = (1 + (tail + 0.5) * 1e-8) / (1 + 50e-8)
    assert draw(weights.expand(50, -1), uniform).tolist() == list(range(1, 51))
    flat, ends = torch.full((100_000,), 1e-5), torch.tensor([0.0, 0.5, 1 - 1 / GRID])
    assert draw(flat.expand(3, -1), ends).tolist() == [0, 50_000, 99_999]


def test_laws_of_any_shape_are_drawn_from_each_for_itself() -> None:
    p = torch.rand(4, 3, 7, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    single = [[int(draw(p[b, i], uniform[b, i])) for i in range(3)] for b in range(4)]
    assert draw(p, uniform).tolist() == single
    assert draw(p[:, :0], uniform[:, :0]).shape == (4, 0)


@few
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_run_ends_where_the_first_does_not_hold(rows: list[list[bool]]) -> None:
    expected = [(row + [False]).index(False) for row in rows]
    assert run_length(torch.tensor(rows)).tolist() == expected
