"""Compiled steps and captured graphs: the same tokens as step by step."""

import shutil

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.cache.base import CacheKind
from var.cache.dense import Dense
from var.cache.static import Static
from var.decoding.base import Decoding
from var.decoding.collaborative import Collaborative
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.fast import speed_up
from var.models.replay import Replay
from var.models.var import VAR
from var.random import Rng
from var.sampling import Condition, Sampling

SAMPLING = Sampling(guidance=2.0, top_k=9, top_p=0.9)


def drawn(
    decoding: Decoding, rows: int, *, greedy: bool = False, device: str = "cpu", seed: int = 0
) -> Tensor:
    """Return the latent of some images after their last turn."""
    condition = Condition(torch.arange(rows, device=device) % tiny.CLASSES)
    rng = None if greedy else Rng.batch(seed, rows, device)
    tokenizer = tiny.tokenizer().to(device)
    *_, canvas = decide(tokenizer, tiny.SCHEDULE, condition, decoding, SAMPLING, rng)
    return canvas.latent


@pytest.fixture(scope="module")
def compiled() -> VAR:
    if shutil.which("g++") is None:
        pytest.skip("compiling for the CPU needs g++")
    model = tiny.model()
    speed_up(model, compile=True)
    return model


@pytest.mark.parametrize("kind", [Static, Dense])
def test_compiled_is_eager(compiled: VAR, kind: CacheKind) -> None:
    for rows in (3, 2):
        for greedy in (True, False):
            ours = drawn(Sequential(compiled, kind), rows, greedy=greedy)
            theirs = drawn(Sequential(tiny.model(), kind), rows, greedy=greedy)
            # A latent is a sum of codes: one other token would move it by far more.
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_compiled_model_is_stored_as_it_was(compiled: VAR) -> None:
    assert compiled.state_dict().keys() == tiny.model().state_dict().keys()


def test_nothing_is_captured_on_the_cpu(compiled: VAR) -> None:
    assert isinstance(compiled.forward, Replay)
    assert not compiled.forward._reels


@pytest.mark.gpu
def test_runs_that_break_off_and_caches_that_are_given_back_do_no_harm() -> None:
    model, plain = tiny.model().cuda(), tiny.model().cuda()
    model.forward = Replay(model.forward)
    sequential, pair = Sequential(model), Collaborative(model, model, switch=1)
    tokenizer, condition = tiny.tokenizer().cuda(), Condition(torch.arange(3, device="cuda"))
    for decoding in (sequential, pair):
        for _ in range(3):
            next(decide(tokenizer, tiny.SCHEDULE, condition, decoding, SAMPLING))
        for seed in range(4):
            ours = drawn(decoding, 3, device="cuda", seed=seed)
            theirs = drawn(Sequential(plain), 3, device="cuda", seed=seed)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Static, Dense])
def test_replayed_graphs_give_the_same_images(kind: CacheKind) -> None:
    model, plain = tiny.model().cuda(), tiny.model().cuda()
    model.forward = Replay(model.forward)
    decoding = Sequential(model, kind)
    for rows, turn in [(3, 0), (3, 1), (3, 2), (2, 3), (3, 4), (2, 5), (2, 6), (2, 7)]:
        ours = drawn(decoding, rows, device="cuda", seed=turn)
        theirs = drawn(Sequential(plain, kind), rows, device="cuda", seed=turn)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    captured = sum(len(reel.steps) for reel in model.forward._reels.values())
    assert captured == (len(tiny.SCHEDULE) if kind is Static else 0)
