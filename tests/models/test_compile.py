"""Compiled steps and captured graphs: the same tokens as step by step."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family, same
from var.cache.base import CacheKind
from var.cache.dense import Dense
from var.cache.static import Static
from var.condition import Condition
from var.decoding.base import Decoding
from var.decoding.collaborative import Collaborative
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.fast import speed_up
from var.models.replay import Replay
from var.random import Rng


def drawn(
    family: Family,
    decoding: Decoding,
    rows: int,
    *,
    greedy: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> Tensor:
    """Return the latent of some images after their last turn."""
    condition = Condition(torch.arange(rows, device=device) % tiny.CLASSES)
    rng = None if greedy else Rng.batch(seed, rows, device)
    tokenizer = family.tokenizer().to(device)
    *_, canvas = decide(tokenizer, family.schedule, condition, decoding, family.guided, rng)
    return canvas.latent


# Compiling takes half a minute each: of two kinds of flows, the one with more pieces.
@pytest.fixture(scope="module", params=["var", "flowar-cross", "raster"])
def compiled(request: pytest.FixtureRequest) -> tuple[Family, Any]:
    """A family, and a model of it whose steps are compiled."""
    if shutil.which("g++") is None:
        pytest.skip("compiling for the CPU needs g++")
    family = tiny.FAMILIES[request.param]
    model = family.model()
    speed_up(model, compile=True)
    return family, model


@pytest.mark.parametrize("kind", [Static, Dense])
def test_compiled_is_eager(compiled: tuple[Family, Any], kind: CacheKind) -> None:
    family, model = compiled
    for rows in (3, 2):
        for greedy in (True, False):
            ours = drawn(family, Sequential(model, kind), rows, greedy=greedy)
            theirs = drawn(family, Sequential(family.model(), kind), rows, greedy=greedy)
            # Of discrete tokens a latent is a sum of codes: another one would move it by far more.
            same(ours, theirs)


def test_a_compiled_model_is_stored_as_it_was(compiled: tuple[Family, Any]) -> None:
    family, model = compiled
    assert model.state_dict().keys() == family.model().state_dict().keys()


def test_nothing_is_captured_on_the_cpu(compiled: tuple[Family, Any]) -> None:
    _, model = compiled
    assert isinstance(model.forward, Replay)
    assert not model.forward._reels


@pytest.mark.gpu
@tiny.families
def test_runs_that_break_off_and_caches_that_are_given_back_do_no_harm(family: Family) -> None:
    model, plain = family.model().cuda(), family.model().cuda()
    model.forward = Replay(model.forward)
    sequential, pair = Sequential(model), Collaborative(model, model, switch=1)
    tokenizer, condition = family.tokenizer().cuda(), Condition(torch.arange(3, device="cuda"))
    for decoding in (sequential, pair):
        for _ in range(3):
            next(decide(tokenizer, plain.schedule, condition, decoding, family.guided))
        for seed in range(4):
            ours = drawn(family, decoding, 3, device="cuda", seed=seed)
            theirs = drawn(family, Sequential(plain), 3, device="cuda", seed=seed)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@tiny.families
@pytest.mark.parametrize("kind", [Static, Dense])
def test_replayed_graphs_give_the_same_images(family: Family, kind: CacheKind) -> None:
    model, plain = family.model().cuda(), family.model().cuda()
    model.forward = Replay(model.forward)
    decoding = Sequential(model, kind)
    for rows, turn in [(3, 0), (3, 1), (3, 2), (2, 3), (3, 4), (2, 5), (2, 6), (2, 7)]:
        ours = drawn(family, decoding, rows, device="cuda", seed=turn)
        theirs = drawn(family, Sequential(plain, kind), rows, device="cuda", seed=turn)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    captured = sum(len(reel.steps) for reel in model.forward._reels.values())
    steps = 2 if plain.schedule.is_raster else len(plain.schedule)  # the first, and all others
    assert captured == (steps if kind is Static else 0)
