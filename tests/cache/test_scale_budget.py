"""Budgets: their arithmetic, their files, and what `cache=scale` makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import KEYED_RUNS
from var import store
from var.cache.scale_budget import Budget
from var.choices import scale
from var.decoding.collaborative import Collaborative
from var.errors import UserError
from var.models.var import VAR
from var.pipeline import Pipeline, load
from var.schedule import Schedule
from var.store import Run

SCHEDULE = Schedule.scales([1, 2, 4, (4, 6), 7])
PUBLISHED_SCHEDULE = Schedule.scales([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
# The published numbers for 2B at 10 % (section 2): drafters, their capacity, a refiner's.
PUBLISHED = {
    9: ([0, 23], 920, 632),
    10: ([0, 23], 1490, 594),
    11: ([0, 23], 2510, 526),
    12: ([0, 23], 4100, 420),
    13: ([0], 6385, 465),
}


def published() -> dict[str, Any]:
    return {
        f"Scale {scale}": {f"Block {i}": int(i in drafters) for i in range(32)}
        | {"High": len(drafters), "Max": most, "Min": least, "Limit": most + 10}
        for scale, (drafters, most, least) in PUBLISHED.items()
    }


ladders = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(Schedule.scales)


@given(
    ladders,
    st.integers(1, 6),
    st.floats(0.01, 1.0),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), unique=True),
    st.integers(0, 20),
)
def test_the_mean_is_never_above_the_fraction(
    schedule: Schedule, layers: int, fraction: float, pairs: list[tuple[int, int]], least: int
) -> None:
    drafters = [pair for pair in pairs if pair[0] < layers]
    budget = Budget.shared(schedule, layers, fraction, drafters, least)
    before = schedule.starts[-2]
    assert budget.layers == layers and len(budget.capacities) == len(schedule)
    assert all(mean <= fraction * before + 1e-9 for mean in budget.means)
    for row, start in zip(budget.capacities, schedule.starts, strict=False):
        assert all(number <= start for number in row)


def test_a_fraction_is_the_same_for_all_layers() -> None:
    budget = Budget.shared(SCHEDULE, 3, 0.3)  # of 45 positions: 13
    assert budget.capacities == ((0,) * 3, (1,) * 3, (5,) * 3, (13,) * 3, (13,) * 3)


def test_the_whole_is_everything_there_is() -> None:
    budget = Budget.shared(SCHEDULE, 2, 1.0)
    assert [row[0] for row in budget.capacities] == list(SCHEDULE.starts[:-1])


def test_a_drafter_keeps_all_it_has_and_the_others_share_the_rest() -> None:
    budget = Budget.shared(SCHEDULE, 4, 0.5, drafters=[(1, 4), (2, 3)], least=8)
    # 22.5 of 45 in the mean, 90 in all. Before the last: 90 - 45 for three.
    assert budget.capacities[3] == (21, 21, 21, 21)
    assert budget.capacities[4] == (15, 45, 15, 15)


def test_a_drafter_that_was_a_refiner_keeps_what_it_has_left() -> None:
    schedule = Schedule.scales([4, 4, 1, 1])
    budget = Budget.shared(schedule, 2, 0.5, drafters=[(0, 3)], least=0)
    assert budget.capacities == ((0, 0), (16, 16), (16, 16), (17, 16))


def test_a_drafter_for_whom_the_others_would_starve_is_none() -> None:
    pairs = [(0, 4), (1, 4)]
    assert Budget.shared(SCHEDULE, 4, 0.5, pairs[:1], least=16) == Budget.shared(SCHEDULE, 4, 0.5)
    # The second in need goes first.
    both, one = (Budget.shared(SCHEDULE, 4, 0.5, these, least=1) for these in (pairs, pairs[:1]))
    assert both == one and one.capacities[4] == (45, 15, 15, 15)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Budget.shared(SCHEDULE, 2, fraction)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (((1,),) * 4, "4 rows of capacities for 5 groups"),
        (((1,),) * 4 + ((1, 2),), "a number for each layer"),
        (((),) * 5, "a number for each layer"),
        (((1,),) * 4 + ((-1,),), "0 or more"),
    ],
)
def test_tables_that_are_none_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(SCHEDULE, rows)


def test_a_file_comes_back_equal() -> None:
    budget = Budget.shared(SCHEDULE, 3, 0.4, drafters=[(2, 4)], least=1)
    assert Budget.parse(budget.text(), "here", SCHEDULE) == budget
    again = json.dumps({"ladder": [1, 2, 4, [4, 6], 7], "capacities": budget.capacities})
    assert Budget.parse(again, "here", SCHEDULE) == budget


def test_the_published_format_is_read() -> None:
    budget = Budget.parse(json.dumps(published()), "here", PUBLISHED_SCHEDULE)
    assert budget.layers == 32 and budget.means[8:] == (650,) * 5
    assert budget.means[:8] == PUBLISHED_SCHEDULE.starts[:8]
    assert budget.capacities[11][22:25] == (420, 4100, 420)


def changed(**changes: Any) -> str:
    plain = {"ladder": [1, 2, 4, [4, 6], 7], "capacities": [[1, 1]] * 5}
    return json.dumps({key: value for key, value in (plain | changes).items() if value != "gone"})


FAULTS = {
    "not YAML": ("a: [1", "here is neither YAML nor JSON: "),
    "no mapping": ("[1]", "names must be mapped"),
    "empty": ("", "names must be mapped"),
    "no rows": (changed(capacities="gone"), "'capacities' is missing"),
    "rows are none": (changed(capacities=3), "not a budget for this model"),
    "too few rows": (changed(capacities=[[1, 1]]), "1 rows of capacities for 5 groups"),
    "halves": (changed(capacities=[[0.5, 1]] * 5), "a capacity is a whole number, got 0.5"),
    "truth": (changed(capacities=[[True, 1]] * 5), "a capacity is a whole number, got True"),
    "negative": (changed(capacities=[[-1, 1]] * 5), "0 or more"),
    "more": (changed(colour=1), "unknown colour; known are ladder, capacities"),
    "ladder": (
        changed(ladder=[1, 2]),
        r"for the ladder \[1, 2\], not for \[1, 2, 4, \[4, 6\], 7\]",
    ),
    "odd ladder": (changed(ladder=["a"]), "not a budget for this model"),
    "another system": (json.dumps(published()), "names none of the 5 scales"),
    "no minimum": (json.dumps({"Scale 5": {"Block 0": 1, "Max": 3}}), "'Min' is missing"),
    "a gap": (
        json.dumps({f"Scale {k}": {"Block 0": 1, "Max": 3, "Min": 3} for k in (3, 5)}),
        "Scale 4 is missing",
    ),
    "blocks": (
        json.dumps({"Scale 4": {"Block 0": 1}, "Scale 5": {}}),
        r"the same blocks, got \[0, 1\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_line(fault: str) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as caught:
        Budget.parse(text, "here", SCHEDULE)
    assert str(caught.value).startswith("here is ") and "\n" not in str(caught.value)


@pytest.fixture
def pipe(tiny_run: Run) -> Pipeline:
    """A pipeline of two layers on the ladder 1, 2, 4: 5 positions before the last group."""
    return Pipeline(tiny_run)


def room(pipe: Pipeline, layers: int = 2, **settings: Any) -> list[int]:
    """Return how many positions each layer holds while the last group is read."""
    cache = scale(pipe, **settings)(layers, None)
    span, k = pipe.schedule[:2], torch.zeros(1, 1, 5, 1)
    for memory in cache.layers:
        memory.extend(k, k, k, span)
    return [memory.tensors()[0].shape[2] for memory in cache.layers]


def file(folder: Path, *last: int, name: str = "b.yaml") -> Path:
    """Write a budget for the ladder 1, 2, 4."""
    rows = ((0,) * len(last), (1,) * len(last), last)
    (folder / name).write_text(Budget(Schedule.scales([1, 2, 4]), rows).text())
    return folder / name


def test_a_choice_takes_a_fraction_a_file_or_several(pipe: Pipeline, tmp_path: Path) -> None:
    assert room(pipe, budget=0.4) == [2, 2]
    assert room(pipe, budget=1) == [5, 5]
    path, other = file(tmp_path, 3, 1), file(tmp_path, 1, 2, 3, name="other.yaml")
    assert room(pipe, budget=str(path)) == [3, 1]
    assert room(pipe, layers=3, budget=[path, other]) == [1, 2, 3]


def test_the_budget_of_a_run_travels_with_it_and_is_its_default(
    pipe: Pipeline, run_folder: Path, tmp_path: Path
) -> None:
    file(run_folder, 4, 1, name=store.BUDGET)
    load(run_folder).save(tmp_path / "copy")
    moved = load(tmp_path / "copy")
    assert moved.run.budget is not None and room(moved) == [4, 1]
    assert room(moved, budget=0.4) == [2, 2], "what is asked for goes first"
    file(run_folder, 4, 1, 1, name=store.BUDGET)
    with pytest.raises(UserError, match=r"run's budget\.yaml is for 3 layers, its model has 2: "):
        scale(load(run_folder))
    (run_folder / store.BUDGET).write_text("[]")
    with pytest.raises(UserError, match=r"budget\.yaml is not a budget for this model"):
        load(run_folder)


@KEYED_RUNS
def test_a_pipeline_takes_it_by_name(pipe: Pipeline) -> None:
    whole = pipe([0, 1, 2], seed=3, cache=scale(pipe, budget=1.0))
    assert torch.equal(whole, pipe([0, 1, 2], seed=3, cache="dense"))
    ours = pipe([0, 1, 2], seed=3, cache="scale")
    alone = pipe([0, 1, 2], seed=3, cache="scale", batch_size=1)
    torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)


def test_two_models_of_different_depth_share_a_fraction(pipe: Pipeline, tmp_path: Path) -> None:
    settings = {k: v for k, v in (pipe.run.recipe.backbone or {}).items() if k != "_target_"}
    torch.manual_seed(1)
    deep = VAR(**{**settings, "depth": 3}, init_gate=1.0, init_head=10.0).eval()
    decoding = Collaborative(pipe.model, deep, switch=2)
    images = pipe([0, 1], decoding=decoding, cache=scale(pipe, budget=0.5))
    alone = pipe([1], seed=1, decoding=decoding, cache=scale(pipe, budget=0.5))
    torch.testing.assert_close(images[1:], alone)
    path, other = file(tmp_path, 3, 1), file(tmp_path, 1, 2, 3, name="other.yaml")
    pipe([0], decoding=decoding, cache=scale(pipe, budget=[path, other]))
    with pytest.raises(UserError, match="is for a model of 2 layers, this one has 3: give a file"):
        pipe([0], decoding=decoding, cache=scale(pipe, budget=path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "cache scale: the fraction to keep must be above 0"),
        ({"budget": "missing.yaml"}, "cannot read the budget missing.yaml"),
        ({"window": 0}, "cache scale: window must be 1 or more, got 0"),
        ({"window": "wide"}, "cache scale: "),
        ({"pool": "min"}, "cache scale: pool must be one of max, mean, got min"),
    ],
)
def test_bad_settings_are_one_line(pipe: Pipeline, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        scale(pipe, **settings)
    assert "\n" not in str(caught.value)


def test_a_budget_for_another_ladder_is_named(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(Budget.shared(SCHEDULE, 2, 0.5).text())
    with pytest.raises(UserError, match=r"b\.yaml is not a budget .* not for \[1, 2, 4\]"):
        scale(pipe, budget=tmp_path / "b.yaml")
