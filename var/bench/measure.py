"""The measuring: rounds in which every row has its turn, so that drift of the machine cancels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from var.bench.memory import Peak
from var.bench.rows import Row
from var.bench.stopwatch import Clock, Stopwatch, finisher
from var.devices import is_out_of_memory
from var.errors import UserError


@dataclass
class Result:
    """What was measured of a row.

    Attributes:
        row: the row.
        totals: seconds of each round's plain run.
        watches: what was noted in each round's watched run.
        images: (B, 3, H, W) on the CPU, of the first watched run.
        peak: most bytes in use, beyond what was before.
        flops: operations of one run.
        fault: why the row was given up, in one line; empty if it was not.
        distance: Frechet distance to the baseline's images; None if not asked for.
    """

    row: Row
    totals: list[float] = field(default_factory=list[float])
    watches: list[Stopwatch] = field(default_factory=list[Stopwatch])
    images: Tensor | None = None
    peak: int = 0
    flops: float = 0.0
    fault: str = ""
    distance: float | None = None


class Bench:
    """Measures rows.

    Each round takes each row twice: plain, for the total, and watched, for everything else. Every
    other round goes through the rows backwards.

    Args:
        rows: what to measure.
        device: where the work is done.
        clock: seconds since whenever.
        told: called with the label of a row before each of its runs.

    Attributes:
        results: one per row; what is there so far may be looked at any time.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        device: torch.device,
        *,
        clock: Clock = perf_counter,
        told: Callable[[str], None] = lambda label: None,
    ) -> None:
        self.device, self.clock, self._told = device, clock, told
        self.results = [Result(row) for row in rows]
        self._finish = finisher(device)

    def warm_up(self, times: int) -> None:
        """Run each row without a look at the clock: three times for memory and operations, then
        `times` more."""
        for result in self.results:
            self._attempt(self._gauge, result)
            for _ in range(times):
                self._attempt(_draw, result)

    def round(self, number: int) -> None:
        """Measure each row once, backwards if the number is odd."""
        for result in reversed(self.results) if number % 2 else self.results:
            self._attempt(self._plain, result)
            self._attempt(self._watched, result)

    def _plain(self, result: Result) -> None:
        self._finish()
        start = self.clock()
        result.row.draw()
        self._finish()
        result.totals.append(self.clock() - start)

    def _watched(self, result: Result) -> None:
        watch = Stopwatch(self.clock, self._finish)
        images = result.row.draw(watch)
        if result.images is None:
            result.images = images.cpu()
        else:
            watch.tokens.clear()  # the same again
        result.watches.append(watch)

    def _gauge(self, result: Result) -> None:
        """Count the operations, and measure the peak of memory from empty caches on."""
        subject = result.row.subject
        result.row.draw()  # compiles what is to be compiled
        subject.release()
        result.flops = operations(result.row.draw)
        subject.release()
        with Peak(self.device) as peak:
            result.row.draw()
        result.peak = peak.bytes

    def _attempt(self, work: Callable[[Result], None], result: Result) -> None:
        if result.fault:
            return
        self._told(result.row.label)
        try:
            work(result)
        except (UserError, ValueError, RuntimeError) as error:
            memory = is_out_of_memory(error)
            if isinstance(error, RuntimeError) and not memory:
                raise
            result.fault = "out of memory" if memory else " ".join(str(error).split())
            result.row.subject.release()


def operations(work: Callable[[], object]) -> float:
    """Return how many operations some work takes in products, convolutions and attention.

    What is compiled is run uncompiled for that: the counter sees operators only.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_own_counts())
    with torch.compiler.set_stance("force_eager"), counter:
        work()
    return float(counter.get_total_flops())


def _draw(result: Result) -> None:
    result.row.draw()


def _own_counts() -> dict[Any, Any]:
    """Return how to count operators that PyTorch's counter does not know, where they exist."""

    def packed(x: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
        return 2 * prod(x) * out_shape[-1]

    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return {} if operator is None else {operator: packed}
