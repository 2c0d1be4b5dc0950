"""Distances of rows from their baselines."""

from collections.abc import Sequence

import torch
from torch import Tensor

from var.bench.distance import add_distances
from var.bench.measure import Result
from var.bench.rows import Row
from var.bench.stopwatch import Stopwatch
from var.metrics.features import SmallClassifier


class Noise:
    """A subject that makes noise of its own brightness, and notes how much of it."""

    def __init__(self, brightness: float) -> None:
        self.brightness, self.drawn = brightness, 0

    def draw(
        self, ids: Sequence[int], seeds: Sequence[int], watch: Stopwatch | None = None
    ) -> Tensor:
        self.drawn += len(ids)
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = [torch.rand(3, 32, 32, generator=stream) for stream in streams]
        return self.brightness * torch.stack(images)

    def release(self) -> None:
        pass


def distances(*brightness: float, network: SmallClassifier) -> tuple[list[float | None], list[int]]:
    """Return the distance of each row, and how many images it drew."""
    subjects = [Noise(each) for each in brightness]
    rows = [Row(str(i), 4, "", "fp32", subject, classes=(0,)) for i, subject in enumerate(subjects)]
    results = [Result(row) for row in rows]
    add_distances(results, 10, network)
    return [result.distance for result in results], [subject.drawn for subject in subjects]


def test_a_baseline_is_drawn_once_and_rows_do_not_mix() -> None:
    torch.manual_seed(0)
    network = SmallClassifier(mean=[0.5], deviation=[0.3]).eval()
    found, drawn = distances(1.0, 0.5, 1.0, 0.8, network=network)
    assert drawn == [10, 10, 10, 10]
    alone = [distances(1.0, each, network=network)[0][1] for each in (0.5, 1.0, 0.8)]
    assert found == [None, *alone] and alone[0] > alone[2] > alone[1]
    assert distances(1.0, network=network) == ([None], [0])
