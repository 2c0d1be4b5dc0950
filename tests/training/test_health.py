"""Codebook health: figures, start on data, revival."""

import math

import torch

from tests.tiny import CHANNELS, SCHEDULE, VOCABULARY
from var.tokenizers.residual import MultiScaleQuantizer
from var.training.health import Health, count_codes, start, usage


def quantizer(**changes: bool) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    return MultiScaleQuantizer(vocabulary=VOCABULARY, channels=CHANNELS, scales=4, **changes)


def latents() -> torch.Tensor:
    """Return latents dominated by their mean, as those of real images are."""
    rng = torch.Generator().manual_seed(0)
    coarse = 5 * torch.randn(256, CHANNELS, 1, 1, generator=rng) + 20
    return coarse + torch.randn(256, CHANNELS, 4, 4, generator=rng)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def used(made: MultiScaleQuantizer) -> list[float]:
    counts = count_codes(made.quantise(latents(), SCHEDULE), VOCABULARY)
    return usage(counts)[0].tolist()


def test_usage_and_perplexity_of_known_counts() -> None:
    share, perplexity = usage(torch.tensor([[4.0, 4, 0, 0], [1, 1, 1, 1], [0, 9, 0, 0]]))
    assert share.tolist() == [0.5, 1, 0.25]
    torch.testing.assert_close(perplexity, torch.tensor([2.0, 4, 1]))
    skewed = usage(torch.tensor([[3.0, 1]]))[1].item()
    assert math.isclose(
        skewed, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel_tol=1e-5
    )


def test_without_care_the_coarse_scale_collapses_and_with_it_all_scales_use_all_codes() -> None:
    naive, careful = quantizer(), quantizer(standardise=True)
    start(careful, latents(), SCHEDULE, rng())
    assert used(naive)[0] < 0.2
    assert min(used(careful)) > 0.9


def test_a_start_on_data_helps_without_whitening_too() -> None:
    naive, started = quantizer(), quantizer()
    start(started, latents(), SCHEDULE, rng())
    assert used(started)[0] > used(naive)[0]


def test_dead_codes_move_onto_data_the_others_stay_and_momentum_is_forgotten() -> None:
    made = quantizer()
    weight = made.codebook.weight
    optimizer = torch.optim.AdamW([weight])
    weight.square().sum().backward()
    optimizer.step()
    before = weight.detach().clone()
    counts = torch.full((4, VOCABULARY), 100.0)
    counts[:, 3:7] = 0
    health = Health(made, interval=10)
    health.observe(counts)
    vectors = [torch.full((2, size, CHANNELS), 9.0) for size in SCHEDULE.sizes]
    assert health.revive(vectors, optimizer, rng()) == 4
    moved = (weight != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6]
    torch.testing.assert_close(weight[3:7].detach(), torch.full((4, CHANNELS), 9.0))
    assert not optimizer.state[weight]["exp_avg"][3:7].any()
    assert optimizer.state[weight]["exp_avg"][:3].all()


def test_counts_survive_a_checkpoint() -> None:
    first, second = (Health(quantizer(), interval=1) for _ in range(2))
    first.observe(torch.rand(4, VOCABULARY))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.since, second.since)
    assert first.report()["usage/scale0"] == second.report()["usage/scale0"]
