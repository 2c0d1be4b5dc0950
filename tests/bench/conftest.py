"""Rows of the tiny run, and a clock that never rushes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from var.bench.rows import Row
from var.bench.subjects import Combination
from var.pipeline import Pipeline
from var.sampling import Sampling
from var.store import Run

MakeRow = Callable[..., Row]


@pytest.fixture
def make_row(tiny_run: Run) -> MakeRow:
    """What makes a row of the tiny run."""

    def make(label: str = "a", *, batch: int = 2, seed: int = 0, **changes: Any) -> Row:
        settings: dict[str, Any] = {"decoding": "sequential", "cache": "static"}
        settings |= {"sampling": Sampling(guidance=1.5, top_k=9), **changes}
        subject = Combination(Pipeline(tiny_run), **settings)
        return Row(label, batch, "tiny", "fp32", subject, classes=(0, 1, 2), seed=seed)

    return make


@pytest.fixture
def ticking() -> Callable[[], float]:
    """A clock that is one second on each time that it is read."""
    seconds: Iterator[int] = iter(range(10**9))
    return lambda: float(next(seconds))


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")
