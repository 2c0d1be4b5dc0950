from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from var.bench import machine
from var.bench.machine import Rate, Sizes, best, describe, measure
from var.bench.memory import Peak
from var.devices import precision_name

TINY = Sizes(rows=8, width=8, channels=4, side=4, square=16)


@pytest.mark.parametrize(
    "packing",
    [{"fp32"}, {"bf16"}, {"fp32", "bf16"}, set()],
    ids=lambda names: "-".join(sorted(names)) or "none",
)
def test_rates_are_operations_over_time(
    cpu: torch.device,
    ticking: Callable[[], float],
    packing: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Which number types can be packed, and are faster so, depends on the processor.
    monkeypatch.setattr(machine, "packed", lambda weight: weight)
    monkeypatch.setattr(machine, "packed_linear", F.linear)
    monkeypatch.setattr(machine, "packed_is_faster", lambda dtype: precision_name(dtype) in packing)
    rates = measure(cpu, TINY, repeats=2, clock=ticking)
    linear, convolution = 2 * 8**3, 2 * 9 * 4**2 * 4**2
    assert {rate.flops for rate in rates if "3x3" in rate.name} == {convolution}
    assert {rate.flops for rate in rates if "3x3" not in rate.name} == {linear}
    counts = {name: 4 + (name in packing) for name in ("fp32", "bf16")}
    assert Counter(rate.precision for rate in rates) == counts
    assert {rate.precision for rate in rates if "packed" in rate.name} == packing


@pytest.mark.gpu
def test_a_gpu_is_measured_without_a_trace() -> None:
    before = torch.get_float32_matmul_precision()
    rates = measure(torch.device("cuda"), TINY, repeats=1)
    assert [rate.precision for rate in rates] == ["bf16", "fp16", "tf32", "fp32"]
    assert torch.get_float32_matmul_precision() == before


def test_the_best_rate_is_one_of_the_same_number_type() -> None:
    rates = [Rate("a", "fp32", 1.0), Rate("b", "fp32", 2.0), Rate("c", "bf16", 9.0)]
    assert [best(rates, name) for name in ("fp32", "bf16", None)] == [2.0, 9.0, 9.0]


def test_a_machine_has_a_name(cpu: torch.device) -> None:
    name, _, threads = describe(cpu).rpartition(", ")
    assert name and threads == f"{torch.get_num_threads()} threads"


def test_a_peak_is_seen_after_it_has_passed(cpu: torch.device) -> None:
    with Peak(cpu) as peak:
        for _ in range(10):
            torch.ones(16 << 20)  # 64 MiB, gone at once
    assert 60e6 < peak.bytes < 200e6
