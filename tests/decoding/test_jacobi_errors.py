"""What cannot be decided several groups a turn is said in one line, with the remedy."""

from typing import Any

import pytest
import torch

from tests import tiny
from tests.decoding.watched import images
from var.cache.base import Cache
from var.cache.scale import Scale
from var.cache.scale_budget import Budget
from var.decoding.jacobi import Jacobi
from var.errors import UserError
from var.random import Rng
from var.sampling import Sampling


def compressed(layers: int, groups: int | None) -> Cache:
    schedule = tiny.SCHEDULE
    rows = tuple((0 if k == 0 else 1,) * layers for k in range(len(schedule)))
    return Scale(layers, groups, budget=Budget(schedule, rows))


def line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("window", [0, -3, 2.0, None, "all"])
def test_a_window_out_of_range_is_refused(window: Any) -> None:
    with pytest.raises(UserError, match=rf"window={window}: .* at least 1") as error:
        Jacobi(tiny.raster(), window)
    line(error)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guess": "best"}, "guess=best: there are random, left, above, sampled, likeliest"),
        ({"test": "none"}, "test=none: use speculative or match"),
    ],
)
def test_choices_that_there_are_not_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Jacobi(tiny.raster(), **settings)
    line(error)


def test_a_cache_that_forgets_nothing_is_refused() -> None:
    remedy = "use cache=static or cache=dense"
    with pytest.raises(UserError, match=remedy) as error:
        Jacobi(tiny.model(), kind=compressed)
    line(error)
    decoding = Jacobi(tiny.model(), 2)
    with pytest.raises(UserError, match=remedy):
        images(decoding, cache=compressed)
    assert images(decoding).ids.shape == (2, tiny.SCHEDULE.starts[-1]), "all is as it was before"


def test_models_of_tokens_that_are_no_codes_are_refused() -> None:
    with pytest.raises(UserError, match="this model's tokens are none") as error:
        Jacobi(tiny.flowar())
    line(error)


@pytest.mark.parametrize("guess", ["left", "above", "sampled", "likeliest"])
def test_neighbours_of_scales_are_refused(guess: str) -> None:
    with pytest.raises(UserError, match=rf"guess={guess} .* use decoding.guess=random") as error:
        images(Jacobi(tiny.model(), 2, guess))
    line(error)


@pytest.mark.parametrize("rng", [None, 0])
def test_mixtures_of_codes_are_refused(rng: int | None) -> None:
    streams = None if rng is None else Rng.batch(rng, 2)
    with pytest.raises(UserError, match="leave sampling.smooth out") as error:
        images(Jacobi(tiny.model(), 2), streams, sampling=Sampling(smooth=True))
    line(error)


@pytest.mark.parametrize(
    "setting", [{"temperature": (1.0, 1.0, 0.5, 0.5)}, {"top_k": (0, 0, 9, 3)}]
)
def test_settings_that_differ_within_a_window_are_refused(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=rf"{name}=.* differs among groups .*: give one") as error:
        images(Jacobi(tiny.model(), 3), sampling=Sampling(**setting))
    line(error)


def test_settings_that_are_the_same_in_every_window_are_not() -> None:
    each = Sampling(guidance=1.5, temperature=(0.7,) * 4)
    ours = images(Jacobi(tiny.model(), 3), Rng.batch(0, 2), sampling=each)
    same = images(Jacobi(tiny.model(), 3), Rng.batch(0, 2), sampling=Sampling(1.5, temperature=0.7))
    assert torch.equal(ours.ids, same.ids)
