"""Frechet distance of each row's images to those of its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from var.bench.figures import baselines
from var.bench.measure import Result
from var.bench.rows import Row
from var.metrics.images import Likeness
from var.metrics.networks import Network, device_of


def add_distances(
    results: Sequence[Result],
    number: int,
    network: Network,
    *,
    choice: str = "batch",
    told: Callable[[str], None] = lambda label: None,
) -> None:
    """Note the distance of each result that is no baseline itself, of the same seeds and labels.

    Args:
        results: of a bench.
        number: of images of each row, 2 or more.
        network: the feature network.
        choice: of baselines, see `baselines`.
        told: called with a row's label before its images are drawn.
    """
    device = device_of(network)
    against: dict[int, Likeness] = {}  # by baseline: its images are drawn once
    for result, base in zip(results, baselines(results, choice), strict=True):
        if result is base or result.fault or base.fault:
            continue
        told(result.row.label)
        if id(base) not in against:
            against[id(base)] = Likeness(network)
            against[id(base)].real(images.to(device) for images in _images(base.row, number))
        likeness = against[id(base)]
        likeness.forget_fakes()
        for images in _images(result.row, number):
            likeness.fake(images.to(device), torch.full((len(images),), -1, device=device))
        result.distance = likeness.report()["frechet_distance"]


def _images(row: Row, number: int) -> Iterator[Tensor]:
    for start in range(0, number, row.batch):
        yield row.draw(start=start, number=min(row.batch, number - start))
