from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.conftest import MakeRow
from var.bench.figures import agreement, baselines, likeness, ratio, scales, summary
from var.bench.machine import Rate
from var.bench.measure import Bench, operations
from var.bench.rows import Row
from var.bench.stopwatch import Stopwatch
from var.errors import UserError

RATES = [Rate("linear", "fp32", 1e12)]


class Slow:
    """A subject that takes a given time on a clock of its own, longer in each run."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log, self.now = name, seconds, log, 0.0

    def draw(
        self, ids: Sequence[int], seeds: Sequence[int], watch: Stopwatch | None = None
    ) -> Tensor:
        self.log.append(self.name)
        Slow.time += self.seconds
        return torch.zeros(len(ids), 3, 2, 2)

    def release(self) -> None:
        pass

    time = 0.0


def slow_row(name: str, seconds: float, log: list[str]) -> Row:
    return Row(name, 2, "", "fp32", Slow(name, seconds, log), classes=(0,))


def test_every_other_round_goes_backwards(cpu: torch.device) -> None:
    log: list[str] = []
    bench = Bench([slow_row(name, 1.0, log) for name in "abc"], cpu)
    for number in range(2):
        bench.round(number)
    assert "".join(log) == "aabbcc" + "ccbbaa"  # each plain, then watched


def test_totals_are_what_the_clock_says(cpu: torch.device) -> None:
    bench = Bench([slow_row("a", 4.0, []), slow_row("b", 2.0, [])], cpu, clock=lambda: Slow.time)
    for number in range(3):
        bench.round(number)
    assert [result.totals for result in bench.results] == [[4.0] * 3, [2.0] * 3]
    first, second = summary(bench.results, RATES)
    assert (first["ms"], first["images/s"], first["ratio"]) == (4000.0, 0.5, 1.0)
    assert (second["ms"], second["images/s"], second["ratio"]) == (2000.0, 1.0, 2.0)


def test_what_slows_both_rows_drops_out_of_the_ratio() -> None:
    assert ratio([4.0, 40.0, 4.4], [2.0, 20.0, 2.2]) == 2.0
    assert ratio([], [1.0]) is None


def test_a_row_agrees_with_itself_and_not_with_other_seeds(
    make_row: MakeRow, cpu: torch.device
) -> None:
    rows = [make_row("a"), make_row("again", cache="dense"), make_row("other", seed=9)]
    bench = Bench(rows, cpu)
    bench.round(0)
    base, again, other = bench.results
    assert agreement(again, base) == [1.0, 1.0, 1.0]
    assert 0 <= min(agreement(other, base) or []) < 1
    figures = summary(bench.results, RATES)
    assert [row["agreement"] == 1 for row in figures] == [True, True, False]
    assert figures[0]["psnr dB"] == float("inf")
    assert 0 < float(figures[2]["psnr dB"] or 0) < 40
    assert [row["scale"] for row in scales(bench.results)] == 3 * [0, 1, 2]


def test_a_row_is_compared_with_the_first_of_its_kind(make_row: MakeRow, cpu: torch.device) -> None:
    rows = [make_row("a"), make_row("b", batch=1), make_row("c"), slow_row("d", 1.0, [])]
    results = Bench(rows, cpu).results
    assert [base.row.label for base in baselines(results)] == ["a", "b", "a", "a"]
    assert [base.row.label for base in baselines(results, "same")] == ["a", "b", "a", "d"]


def test_stages_take_no_longer_than_the_whole(
    make_row: MakeRow, cpu: torch.device, ticking: Callable[[], float]
) -> None:
    bench = Bench([make_row()], cpu, clock=ticking)
    bench.warm_up(1)
    start = ticking()
    bench._watched(bench.results[0])
    (watch,) = bench.results[0].watches
    assert 0 < sum(watch.laps.values()) <= ticking() - start


def test_warming_up_counts_operations_and_memory(make_row: MakeRow, cpu: torch.device) -> None:
    told: list[str] = []
    bench = Bench([make_row("a"), make_row("b", batch=4)], cpu, told=told.append)
    bench.warm_up(2)
    assert told == ["a"] * 3 + ["b"] * 3
    one, two = (result.flops for result in bench.results)
    assert 0 < 1.9 * one < two <= 2 * one  # what is done to weights is done once a batch


def test_products_convolutions_and_attention_are_counted() -> None:
    x, w, kernel = torch.ones(3, 4), torch.ones(5, 4), torch.ones(2, 2, 3, 3)
    q, k = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 7, 8)

    def work() -> None:
        F.linear(x, w)
        F.conv2d(torch.ones(1, 2, 4, 4), kernel, padding=1)
        F.scaled_dot_product_attention(q, k, k)

    with torch.inference_mode():
        counted = operations(work)
    assert counted == 2 * 3 * 4 * 5 + 2 * 9 * 2 * 2 * 16 + 2 * 2 * (2 * 3 * 7 * 8)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UserError("switch=9 is\ntoo much"), "switch=9 is too much"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out of memory"),
    ],
)
def test_a_row_that_fails_is_given_up_and_the_others_go_on(
    cpu: torch.device, monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str
) -> None:
    rows = [slow_row("bad", 1.0, []), slow_row("good", 1.0, [])]

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(rows[0].subject, "draw", fail)
    bench = Bench(rows, cpu)
    bench.warm_up(1)
    bench.round(0)
    bad, good = summary(bench.results, RATES)
    assert bad == {"row": "bad", "batch": 2, "note": fault}
    assert good["ms"] is not None and good["ratio"] is None


def test_a_fault_of_the_program_is_not_hidden(
    cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = slow_row("a", 1.0, [])
    monkeypatch.setattr(row.subject, "draw", lambda *args: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        Bench([row], cpu).round(0)


def test_images_of_another_shape_are_not_compared() -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert likeness(images, torch.zeros(1, 3, 2, 2)) is None
    assert likeness(images, images + 0.1) == pytest.approx(20.0)
