from collections.abc import Callable

import torch

from tests.bench.conftest import MakeRow
from var.bench.stopwatch import STAGES, Stopwatch
from var.bench.subjects import Combination

Clock = Callable[[], float]


def test_who_is_watched_draws_the_same_images(make_row: MakeRow) -> None:
    row = make_row()
    assert torch.equal(row.draw(), row.draw(Stopwatch()))


def test_every_stage_of_every_group_is_timed(make_row: MakeRow, ticking: Clock) -> None:
    watch = Stopwatch(ticking)
    make_row().draw(watch)
    turns = {(stage, group) for stage in STAGES[:-1] for group in range(3)}
    assert set(watch.laps) == turns | {("decode", 2)}
    # Of a clock that ticks when it is read, a stage takes one second each time it is entered:
    # head, filters and draw; read and write.
    assert [watch.total(stage) for stage in STAGES] == [3.0, 9.0, 6.0, 1.0]


def test_stages_do_not_overlap(make_row: MakeRow, ticking: Clock) -> None:
    watch = Stopwatch(ticking)
    start = ticking()
    make_row().draw(watch)
    assert sum(watch.laps.values()) <= ticking() - start


def test_the_clock_waits_for_the_device() -> None:
    order: list[str] = []
    watch = Stopwatch(lambda: order.append("clock") or 0.0, lambda: order.append("wait"))
    with watch.stage("head"):
        order.append("work")
    assert order == ["wait", "clock", "work", "wait", "clock"]


def test_tokens_and_bytes_of_caches_are_noted(make_row: MakeRow) -> None:
    row, watch = make_row(), Stopwatch()
    row.draw(watch)
    assert [tuple(t.shape) for t in watch.tokens] == [(2, 1), (2, 4), (2, 16)]
    # two layers, keys and values, 4 guided rows, 21 positions, width 32, 4 bytes each
    assert watch.cached == 2 * 2 * 4 * 21 * 32 * 4
    assert list(watch.held) == [0, 1, 2]
    assert isinstance(row.subject, Combination)
    row.subject.release()
    assert not any(m.tensors() for cache in row.subject.decoding.caches for m in cache.layers)
