"""The selection: what holds for any scores, and where observers stand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from var.cache.scale_select import Selection, observers

CPU = torch.device("cpu")

selections = st.builds(
    Selection,
    window=st.integers(1, 26),
    pool=st.sampled_from(["max", "mean"]),
    width=st.sampled_from([1, 3, 5]),
    score=st.sampled_from(["logits", "weights"]),
)
grids = st.tuples(st.integers(1, 7), st.integers(1, 7))


def inputs(length: int, total: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return q (3, 2, L, 4) and keys (3, 2, S, 4)."""
    rng = torch.Generator().manual_seed(seed)
    q = torch.randn(3, 2, length, 4, generator=rng)
    return q, torch.randn(3, 2, total, 4, generator=rng)


@given(selections, grids, st.integers(0, 20), st.integers(0, 99), st.data())
def test_a_sorted_set_of_the_right_size_is_kept_the_window_in_it(
    selection: Selection, grid: tuple[int, int], past: int, seed: int, data: st.DataObject
) -> None:
    length = grid[0] * grid[1]
    total = length + past
    if total < 2:
        return
    capacity = data.draw(st.integers(1, total - 1))
    q, keys = inputs(length, total, seed)
    kept = selection.keep(q, keys, capacity, grid)
    assert kept.shape == (3, 2, capacity)
    assert (kept.diff() > 0).all() and kept.min() >= 0 and kept.max() < total
    if capacity >= selection.window:
        window = observers(grid, total, selection.window, CPU)
        assert all(torch.isin(window, each).all() for each in kept.flatten(0, 1))


@given(selections, st.integers(0, 99), st.permutations(range(6)))
def test_rows_and_heads_are_chosen_for_by_themselves(
    selection: Selection, seed: int, order: list[int]
) -> None:
    q, keys = inputs(16, 30, seed)

    def shuffled(t: Tensor) -> Tensor:
        return t.flatten(0, 1)[order].view_as(t)

    kept = selection.keep(q, keys, 20, (4, 4))
    assert torch.equal(selection.keep(shuffled(q), shuffled(keys), 20, (4, 4)), shuffled(kept))


@pytest.mark.parametrize("score", ["logits", "weights"])
def test_what_observers_look_at_is_kept(score: str) -> None:
    q, keys = torch.ones(1, 1, 16, 4), torch.zeros(1, 1, 40, 4)
    keys[..., [3, 17], :] = 1.0
    kept = Selection(window=4, width=1, score=score).keep(q, keys, 6, (4, 4))
    assert kept.flatten().tolist() == [3, 17, 24, 26, 32, 34]


def test_neighbours_of_a_maximum_are_kept_with_it_and_of_equals_the_earlier() -> None:
    q, keys = torch.ones(1, 1, 16, 4), torch.zeros(1, 1, 40, 4)
    keys[..., 10, :] = 1.0
    three = Selection(window=4, width=3, pool="max").keep(q, keys, 7, (4, 4))
    two = Selection(window=4, width=3, pool="max").keep(q, keys, 6, (4, 4))
    assert three.flatten().tolist()[:3] == [9, 10, 11] and two.flatten().tolist()[:2] == [9, 10]


def test_logits_and_weights_are_different_votes() -> None:
    # One observer shouts for 0, all four prefer 1 to whatever else there is.
    q, keys = torch.eye(4)[None, None], torch.zeros(1, 1, 8, 4)
    keys[0, 0, 0, 0] = 9.0
    keys[0, 0, 1] = 2.0
    keys[0, 0, 0, 1:] = -5.0
    window = torch.arange(4, 8)
    logits, weights = (
        Selection(window=4, width=1, score=score).scores(q, keys, window)[0, 0]
        for score in ("logits", "weights")
    )
    assert logits[0] == -6.0 and logits[1] == 8.0
    inside = (q @ keys.mT).softmax(-1).sum(2)[0, 0]
    torch.testing.assert_close(weights[:4], inside[:4])


@pytest.mark.parametrize(
    ("grid", "number", "cells"),
    [
        ((6, 6), 9, [0, 2, 4, 12, 14, 16, 24, 26, 28]),
        ((5, 5), 4, [0, 2, 10, 12]),
        ((3, 6), 9, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        ((7, 10), 4, [12, 17, 42, 47]),  # rows 1 and 4, columns 2 and 7
    ],
)
def test_observers_stand_in_the_middle_of_patches(
    grid: tuple[int, int], number: int, cells: list[int]
) -> None:
    found = observers(grid, 100, number, CPU) - (100 - grid[0] * grid[1])
    assert found.tolist() == cells


@pytest.mark.parametrize(("grid", "number"), [((3, 9), 16), ((8, 8), 12), (None, 16), ((9, 9), 16)])
def test_where_there_are_no_patches_the_latest_observe(
    grid: tuple[int, int] | None, number: int
) -> None:
    assert observers(grid, 70, number, CPU).tolist() == list(range(70 - number, 70))
    assert observers(grid, 5, number, CPU).tolist() == list(range(5))


def test_positions_asked_for_in_inference_mode_serve_later_gradients() -> None:
    with torch.inference_mode():
        observers((11, 13), 143, 4, CPU)
    x = torch.ones(143, requires_grad=True)
    (x[observers((11, 13), 143, 4, CPU)] * x.sum()).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "setting", [{"window": 0}, {"width": 2}, {"width": 0}, {"pool": "min"}, {"score": "odd"}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be"):
        Selection(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "pool", "width", "score"),
    [(16, "max", 5, "logits"), (9, "mean", 3, "logits"), (4, "max", 1, "weights")],
)
def test_scores_are_those_of_the_paper_spelled_out(
    window: int, pool: str, width: int, score: str
) -> None:
    q, keys = inputs(36, 50, seed=3)
    places = observers((6, 6), 50, window, CPU)
    found = Selection(window, pool, width, score).scores(q, keys, places)[2, 1]
    votes = [0.0] * 50
    for place in places.tolist():
        logits = [float(q[2, 1, place - 14] @ key) for key in keys[2, 1]]
        whole = sum(math.exp(logit) for logit in logits)
        for i, logit in enumerate(logits):
            votes[i] += logit if score == "logits" else math.exp(logit) / whole
    for place in places.tolist():
        votes[place] = -math.inf
    for i in sorted(set(range(50)) - set(places.tolist())):
        near = [votes[j] for j in range(i - width // 2, i + width // 2 + 1) if 0 <= j < 50]
        pooled = max(near) if pool == "max" else sum(near) / width
        assert found[i].item() == pytest.approx(max(pooled, torch.finfo().min), rel=1e-4, abs=1e-4)


def test_scores_tell_apart_what_half_precision_cannot() -> None:
    q, keys = torch.ones(1, 1, 16, 4), torch.zeros(1, 1, 40, 4)
    keys[..., 3, :2] = 128.0  # 256 per observer
    keys[..., 9, :3] = torch.tensor([128.0, 128.0, 1.0])  # 257, which bfloat16 rounds to 256
    q, keys = q.bfloat16(), keys.bfloat16()
    kept = Selection(window=4, width=1).keep(q, keys, 5, (4, 4))
    assert kept.flatten().tolist() == [9, 24, 26, 32, 34]
