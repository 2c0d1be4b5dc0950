"""Scores of images by what a network sees in them; the formulas are those of torch-fidelity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

Array = NDArray[np.float64]
_BLOCK = 2500  # rows of distances that are held at a time, against all others


@dataclass(frozen=True, eq=False)
class Moments:
    """What the Frechet distance knows of a set of images.

    Attributes:
        mean: (D,) of their features.
        covariance: (D, D), divided by N - 1.
    """

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of features (N, D), N of at least 2, in float64."""
        array = features.double().cpu().numpy()
        return cls(array.mean(axis=0), np.cov(array, rowvar=False))


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance of the Gaussians with these moments (FID).

    Exact to 1e-9 or so where covariances have full rank; of fewer images than features to 1e-4.
    """
    one, other = ({"mu": m.mean, "sigma": m.covariance} for m in (a, b))
    return max(0.0, float(fid_statistics_to_metric(one, other, False)[KEY_METRIC_FID]))


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return the Inception Score of logits (N, classes), N of at least `splits`, and its error.

    Images are dealt to the splits at random, always in the same way: samples come class by class.
    The error is that of the mean of the splits; papers state their deviation, sqrt(splits) times
    as large.
    """
    found = isc_features_to_metric(logits.cpu(), splits=splits, shuffle=True, rng_seed=2020)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD] / math.sqrt(splits)


def precision_recall(made: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return how many made images lie among the real ones, and the reverse.

    That is, within the distance of some real image's `neighbours`-th neighbour (arXiv 1904.06991).

    Args:
        made, real: features (N, D), (M, D), N and M above `neighbours`.
        neighbours: 3 as published.
    """
    found = prc_features_to_metric(
        made.cpu(),
        real.cpu(),
        prc_neighborhood=neighbours,
        prc_batch_size=_BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def resampled(labels: Tensor, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """Yield numbers (N,) of images drawn anew from N of them, with replacement, within each class.

    Args:
        labels: (N,) class of each; as many of each class are drawn as there are.
        draws: how often.
        seed: of what is drawn.
    """
    stream = torch.Generator().manual_seed(seed)
    groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    for _ in range(draws):
        picks = (torch.randint(len(group), (len(group),), generator=stream) for group in groups)
        yield torch.cat([group[pick] for group, pick in zip(groups, picks, strict=True)])


def spread(
    labels: Tensor,
    draws: int,
    score: Callable[[Tensor], float],
    told: Callable[[], object] = lambda: None,
) -> float | None:
    """Return the bootstrap's standard deviation of a score.

    None if it cannot be told: of under 2 draws, or a class of which there is a single image. Of
    small classes draws vary too little, by sqrt(1 - 1/n) with n images each, which is made up for.

    Args:
        labels: (N,) class of each image.
        draws: how often images are drawn anew, see `resampled`.
        score: of the images of some numbers (N,).
        told: called after each draw.
    """
    _, counts = labels.unique(return_counts=True)
    if draws < 2 or counts.min() < 2:
        return None
    scores = []
    for numbers in resampled(labels, draws):
        scores.append(score(numbers))
        told()
    each = len(labels) / len(counts)
    return float(np.std(scores, ddof=1)) * math.sqrt(each / (each - 1))
