"""Scores of features against independent computations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from var.metrics.scores import (
    Moments,
    frechet,
    inception_score,
    precision_recall,
    resampled,
    spread,
)


def features(count: int, width: int, seed: int) -> Tensor:
    """Return features that are correlated and not centred."""
    stream = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=stream)
    return torch.randn(count, width, generator=stream) @ mix + torch.randn(width, generator=stream)


def by_hand(a: Tensor, b: Tensor) -> float:
    """Return the distance by way of a symmetric square root, in numpy alone."""
    x, y = a.double().numpy(), b.double().numpy()
    one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(one) + np.trace(other) - 2 * cross)


@given(width=st.integers(2, 24), more=st.integers(2, 60), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_distance_equals_the_formula(width: int, more: int, seed: int) -> None:
    a, b = features(width + more, width, seed), features(2 * width + more, width, seed + 1)
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(by_hand(a, b), rel=1e-9, abs=1e-6)
    assert frechet(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-6)


def test_the_inception_score_is_that_of_shuffled_parts() -> None:
    sure = 50 * torch.eye(10).repeat_interleave(100, dim=0)  # class by class, as samples come
    value, off = inception_score(sure)
    assert 9 < value < 10 and 0 < off < 0.5
    assert inception_score(sure) == (value, off)
    assert inception_score(torch.zeros(50, 10)) == (pytest.approx(1), pytest.approx(0))


def test_precision_and_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1], [2], [3], [4], [5]])
    made = torch.tensor([[0.5], [1.5], [2.5], [3.5], [90], [91]])
    # Of neighbours at distance 3, 2, 2, 2, 2, 3: four lie within.
    assert precision_recall(made, real) == (pytest.approx(4 / 6), pytest.approx(1))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 1000, real) == (0, 0)


def test_images_are_drawn_anew_within_their_class() -> None:
    labels = torch.tensor([0] * 7 + [1] * 3 + [2] * 5)
    for numbers in resampled(labels, 5):
        assert torch.equal(labels[numbers], labels)
    first, second = resampled(labels, 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, next(resampled(labels, 1)))


def test_the_spread_is_that_of_repeated_draws() -> None:
    real = Moments.of(features(20_000, 8, 5))
    stream = torch.Generator().manual_seed(0)
    pool = features(20_000, 8, 5) + 0.7
    draws = [pool[torch.randperm(20_000, generator=stream)[:500]] for _ in range(40)]
    repeated = np.std([frechet(Moments.of(x), real) for x in draws], ddof=1)
    one = draws[0]
    guessed = spread(torch.zeros(500), 40, lambda n: frechet(Moments.of(one[n]), real))
    assert guessed is not None and repeated / 1.6 < guessed < repeated * 1.6
    assert spread(torch.zeros(500), 0, lambda n: 0.0) is None
