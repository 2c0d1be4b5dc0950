"""Training steps side by side: rows agree, and report what they took."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import tiny
from var.bench.naive_train import NaiveTraining
from var.bench.training import Step, make_steps, measure_steps
from var.condition import Condition
from var.errors import UserError
from var.random import Rng
from var.store import Run

VALUES: dict[str, Any] = {
    "precision": ["fp32"],
    "compile": [False],
    "batch": [2],
    "naive": True,
    "seed": 0,
    "files": None,
}


@pytest.mark.parametrize("changes", [{}, {"l2_norm": False}, {"shared_adaln": True}])
def test_the_naive_step_computes_the_same(changes: dict[str, Any]) -> None:
    model = tiny.model(label_smoothing=0.1, **changes).train()
    span, condition = model.schedule[:], Condition(torch.tensor([0, -1]))
    x, tokens = tiny.vectors(2, len(span)), tiny.ids(2, len(span))
    ours = model.head.loss(model(x, span, condition), tokens, span, Rng([0, 1]))
    theirs = NaiveTraining(model)(x, span, condition, tokens)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(y.mean(), weights) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_rows_take_the_same_steps(
    run_folder: Any, cpu: torch.device, ticking: Callable[[], float]
) -> None:
    steps = make_steps({**VALUES, "model": [str(run_folder)]}, cpu)
    measure_steps(steps, cpu, warmup=1, repeats=3, clock=ticking)
    rows = [step.figures() for step in steps]
    assert [str(row["row"]).split()[1] for row in rows] == ["naive", "plain", "checkpointing"]
    for row, step in zip(rows, steps, strict=True):
        assert row["ms"] == 1000 and row["time share"] == 1 and len(set(step.losses)) == 3
        assert row["loss difference"] == pytest.approx(0, abs=1e-5)


def test_a_row_without_room_is_given_up(cpu: torch.device) -> None:
    def full() -> Any:
        raise torch.OutOfMemoryError

    step = Step("a", 1, full, lambda module: torch.zeros(1), torch.float32)
    measure_steps([step], cpu, warmup=0, repeats=2)
    assert step.figures() == {"row": "a", "batch": 1, "note": "out of memory"}


@pytest.mark.parametrize("tiny_run", ["raster", "flowar"], indirect=True)
def test_other_models_have_no_naive_step(tiny_run: Run, run_folder: Any, cpu: torch.device) -> None:
    with pytest.raises(UserError, match="naive=false"):
        make_steps({**VALUES, "model": [str(run_folder)]}, cpu)
    steps = make_steps({**VALUES, "model": [str(run_folder)], "naive": False}, cpu)
    measure_steps(steps, cpu, warmup=0, repeats=1)
    assert steps[0].losses == pytest.approx(steps[1].losses, abs=1e-6)
