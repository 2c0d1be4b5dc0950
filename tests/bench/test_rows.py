import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from var.bench.rows import Grid, Row, Setting, Shelf, make_rows
from var.bench.subjects import Combination
from var.errors import UserError


def grid(model: Path, **changes: Any) -> Grid:
    axes = {"decoding": ["sequential"], "cache": ["static"], "precision": ["fp32"]}
    return Grid(model=[str(model)], **{**axes, "compile": [False], "batch": [1], **changes})


def rows(grid: Grid, **setting: Any) -> list[Row]:
    return make_rows(grid, Setting(**setting), Shelf(torch.device("cpu")))


def pipe(row: Row) -> object:
    assert isinstance(row.subject, Combination)
    return row.subject.pipe


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module from elsewhere."""
    module = ModuleType("theirs")
    monkeypatch.setitem(sys.modules, "theirs", module)
    return module


def test_lists_are_multiplied_out_and_naive_rows_come_first(run_folder: Path) -> None:
    made = rows(
        grid(run_folder, cache=["static", "dense"], precision=["fp32", "bf16"], batch=[1, 3],
             naive=True)
    )  # fmt: skip
    name = str(run_folder)
    half = [
        f"{name} naive fp32",
        f"{name} naive bf16",
        f"{name} sequential static fp32",
        f"{name} sequential static bf16",
        f"{name} sequential dense fp32",
        f"{name} sequential dense bf16",
    ]
    assert [row.label for row in made] == 2 * half
    assert [row.batch for row in made] == 6 * [1] + 6 * [3]


def test_rows_of_one_model_and_precision_share_what_is_loaded(run_folder: Path) -> None:
    made = rows(grid(run_folder, cache=["static", "dense"], precision=["fp32", "bf16"]))
    assert pipe(made[0]) is pipe(made[2]) and pipe(made[0]) is not pipe(made[1])


def test_settings_of_a_choice_are_part_of_the_label(run_folder: Path) -> None:
    choice = {"name": "collaborative", "closer": str(run_folder), "switch": 1}
    (row,) = rows(grid(run_folder, decoding=[choice]))
    assert f"collaborative(closer={run_folder}, switch=1)" in row.label
    assert row.draw().shape == (1, 3, 8, 8)


def test_a_single_row_says_only_what_is_different(run_folder: Path) -> None:
    extra = {"cache": "dense", "batch": 2, "label": "mine"}
    made = rows(grid(run_folder, batch=[1, 2], rows=[extra]))
    assert [(row.label == "mine", row.batch) for row in made] == [
        (False, 1), (False, 2), (True, 2)
    ]  # fmt: skip


def test_a_single_row_may_have_a_batch_of_its_own(run_folder: Path) -> None:
    made = rows(grid(run_folder, rows=[{"batch": 5, "label": "big"}]))
    assert [(row.label, row.batch) for row in made[1:]] == [("big", 5)]


def test_automatic_precision_goes_by_the_name_of_what_it_is(run_folder: Path) -> None:
    (row,) = rows(grid(run_folder, precision=["auto"]))
    assert row.precision in ("fp32", "bf16") and row.label.endswith(row.precision)


def test_all_rows_get_the_same_seeds_and_labels(run_folder: Path, theirs: ModuleType) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def draw(labels: list[int], seeds: list[int], device: torch.device) -> torch.Tensor:
        seen.append((labels, seeds))
        return torch.zeros(len(labels), 3, 8, 8)

    theirs.draw = draw
    call = {"call": "theirs:draw", "label": "other"}
    ours, other = rows(grid(run_folder, batch=[4], rows=[call]), labels=["dog", 0, -1], seed=7)
    other.draw()
    assert seen == [([1, 0, -1, 1], [7, 8, 9, 10])]
    assert (ours.classes, ours.seed) == (other.classes, other.seed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoding": ["psychic"]}, "row .*psychic static fp32: unknown decoding 'psychic'"),
        ({"cache": [{"name": "dense", "size": 1}]}, "row .*: cache dense: unknown size"),
        ({"cache": [{"size": 1}]}, "unknown cache None"),
        ({"precision": ["fp8"]}, "unknown precision 'fp8'"),
        ({"batch": [0]}, "batch=0"),
        ({"batch": []}, "batch=\\[\\] leaves no row"),
        ({"rows": [{"modle": "x"}]}, "row 0 of rows: unknown modle"),
        ({"rows": [{"call": "nonsense"}]}, "row nonsense: call=nonsense: say module:function"),
        ({"rows": [{"call": "no.module:f"}]}, "PYTHONPATH"),
        ({"rows": [{"call": "theirs:number"}]}, "theirs:number is not a function"),
        ({"model": ["random/var-d0"]}, "row random/var-d0 .*: unknown checkpoint var-d0"),
        ({"model": ["random/var-d8@9"]}, "row random/var-d8@9 .*: no ladder .*: var-d8@256"),
    ],
)
def test_a_bad_row_is_named_in_one_line(
    run_folder: Path, theirs: ModuleType, changes: dict[str, Any], message: str
) -> None:
    theirs.number = 3
    with pytest.raises(UserError, match=message) as caught:
        rows(Grid(**{**vars(grid(run_folder)), **changes}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "message"), [(None, "got NoneType"), (torch.zeros(1, 3, 4, 4), "got \\(1, 3, 4, 4")]
)
def test_a_function_must_return_images(
    run_folder: Path, theirs: ModuleType, result: object, message: str
) -> None:
    theirs.draw = lambda *args: result
    *_, row = rows(grid(run_folder, batch=[2], rows=[{"call": "theirs:draw"}]))
    with pytest.raises(UserError, match=message):
        row.draw()
