"""Per-scale whitening: two inverse maps, and statistics that settle on the data."""

import torch

from var.tokenizers.standardise import Standardise
from var.training.health import covariance, moments


def data(count: int = 4000) -> torch.Tensor:
    """Return vectors with a mean, and directions of very different size."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.1, 0.05], [0.0, 0.0, 0.5]])
    return torch.randn(count, 3, generator=rng) @ mixing + torch.tensor([5.0, -2.0, 0.0])


def grid(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors (N, C) as a latent (N, C, 1, 1)."""
    return vectors[:, :, None, None]


def test_whitening_is_undone_by_restoring() -> None:
    standard = Standardise(2, 3)
    mean, square = moments([data()[None], data()[None] * 7])
    standard.follow(mean, covariance(mean, square), share=1.0)
    x = grid(data(50))
    for group in (0, 1):
        torch.testing.assert_close(
            standard.restore(standard(x, group), group), x, atol=1e-4, rtol=1e-4
        )


def test_after_one_full_step_the_data_are_white() -> None:
    standard = Standardise(1, 3)
    mean, square = moments([data()[None]])
    standard.follow(mean, covariance(mean, square), share=1.0)
    white = standard(grid(data()), 0)[:, :, 0, 0]
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.T.cov(), torch.eye(3), atol=2e-2, rtol=0)


def test_small_steps_lead_to_the_same_statistics() -> None:
    standard, x = Standardise(1, 3), grid(data())
    for _ in range(200):
        white = standard(x, 0)[:, :, 0, 0]
        mean, square = moments([white[None]])
        standard.follow(mean, covariance(mean, square), share=0.1)
    white = standard(x, 0)[:, :, 0, 0]
    torch.testing.assert_close(white.T.cov(), torch.eye(3), atol=5e-2, rtol=0)


def test_a_direction_without_variance_is_not_blown_up() -> None:
    standard = Standardise(1, 3, floor=1e-2)
    flat = data() * torch.tensor([1.0, 1.0, 0.0])
    mean, square = moments([flat[None]])
    standard.follow(mean, covariance(mean, square), share=1.0)
    assert standard.white.isfinite().all()
    assert standard.white.abs().max() < 20
