"""Flows with known solutions: where grids look, and how fast solvers come near."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from var.errors import UserError
from var.heads.flow_net import time_index
from var.heads.ode import SOLVERS, Solver, published, solver, uniform

ANY = pytest.mark.parametrize("name", SOLVERS)


@given(steps=st.integers(1, 200))
def test_equal_steps_lead_from_one_to_nought(steps: int) -> None:
    times = uniform(steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert times[0] == 1 and times[-1] == 0
    torch.testing.assert_close(times.diff(), torch.full_like(times[1:], -1 / steps))


@given(steps=st.integers(2, 200))
def test_the_published_grid_falls_in_an_even_number_of_steps(steps: int) -> None:
    times = published(steps)
    assert times.dtype == torch.float64 and len(times) - 1 == steps // 2 * 2
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


def test_the_published_grid_of_25_is_one_of_24_steps_with_a_kink() -> None:
    early = [1 - 0.7 * i / 11 for i in range(12)]
    late = [0.25 - 0.25 * i / 12 for i in range(13)]
    expected = torch.tensor(early + late, dtype=torch.float64)
    torch.testing.assert_close(published(25), expected, rtol=0, atol=1e-15)
    assert torch.equal(published(25), published(24))


def test_the_published_grid_of_50_has_equal_steps_and_no_other_has() -> None:
    assert torch.equal(published(50), uniform(50))
    for steps in (48, 49, 51, 100):
        assert published(steps).diff().std() > 1e-4


def test_a_single_published_step_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="needs 2 steps or more: take solver=euler") as caught:
        solver("published", 1)
    assert "\n" not in str(caught.value)


def test_an_unknown_solver_is_named_and_so_are_those_that_there_are() -> None:
    with pytest.raises(UserError, match="'rk4': there are euler, heun, midpoint, published$"):
        solver("rk4", 4)


def test_thousandths_are_those_of_float32_products_of_float64_times() -> None:
    looks = solver("published", 50).looks
    told = time_index(looks)
    assert told.tolist() == [1000 - 20 * i for i in range(50)]
    exact = (looks * 1000).long()  # what a network must not be told
    assert told[told != exact].tolist() == [680, 560]
    assert exact[told != exact].tolist() == [679, 559]
    coarse = torch.linspace(1, 0, 51, dtype=torch.float32)[:-1]
    assert not torch.equal(time_index(coarse), told)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_come_near_by_their_order(name: str, order: int) -> None:
    # x' = x (1 + t), so that both the state and the time of a look count.
    def error(steps: int) -> float:
        path = solver(name, steps)
        rates = 1 + path.looks
        start = torch.tensor([1.0, -2.0], dtype=torch.float64)
        end = path.follow(start, lambda x, look: x * rates[look])
        return float((end - start * math.exp(-1.5)).abs().max())

    errors = [error(steps) for steps in (20, 40, 80, 160)]
    for before, after in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(before / after) == pytest.approx(order, abs=0.2)


@ANY
def test_straight_paths_are_followed_exactly_in_the_fewest_steps(name: str) -> None:
    noise, data = torch.randn(2, 3, 4, 5, dtype=torch.float64).unbind()
    end = solver(name, 2 if name == "published" else 1).follow(noise, lambda x, look: noise - data)
    torch.testing.assert_close(end, data, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["midpoint", "heun"])
def test_second_order_is_exact_in_one_step_where_the_velocity_grows_with_time(name: str) -> None:
    path = Solver(torch.tensor([1.5, 0.5]).double(), reach=solver(name, 1).reach)
    end = path.follow(torch.ones(1), lambda x, look: 2 * path.looks[look].expand(1))
    assert end.item() == pytest.approx(1 - 1.5**2 + 0.5**2, abs=1e-15)


@ANY
@pytest.mark.parametrize("steps", [2, 5])
def test_nobody_looks_at_time_nought(name: str, steps: int) -> None:
    looks = solver(name, steps).looks
    assert looks.min() > 0 and looks[0] == 1
    assert solver("heun", steps).looks.tolist()[-1] == pytest.approx(1 / steps)


@ANY
@pytest.mark.parametrize("steps", [2, 3, 25, 50])
def test_a_solver_looks_when_it_says_and_at_no_other_time(name: str, steps: int) -> None:
    # With velocity 1, from 1 on, the state is the time.
    path, asked, states = solver(name, steps), list[int](), list[Tensor]()

    def velocity(x: Tensor, look: int) -> Tensor:
        asked.append(look)
        states.append(x)
        return torch.ones(1)

    path.follow(torch.ones(1), velocity)
    assert asked == list(range(len(path.looks)))
    torch.testing.assert_close(torch.cat(states), path.looks, rtol=0, atol=1e-14)


def test_a_second_look_may_be_taken_anywhere_within_a_step() -> None:
    path = Solver(uniform(2), reach=0.25)
    assert path.looks.tolist() == [1.0, 0.875, 0.5, 0.375]
    end = path.follow(torch.ones(1), lambda x, look: 2 * path.looks[look].expand(1))
    assert end.item() == pytest.approx(0, abs=1e-15)


@ANY
def test_states_are_float64_whatever_velocities_are(name: str) -> None:
    kinds = set()

    def velocity(x: Tensor, look: int) -> Tensor:
        kinds.add(x.dtype)
        return x.bfloat16()

    end = solver(name, 4).follow(torch.ones(2), velocity)
    assert kinds == {torch.float64} == {end.dtype}
