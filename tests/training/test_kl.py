"""Training a continuous tokenizer: its losses, and what it learns of where its latents lie."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra import compose, initialize_config_module
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny
from var import store
from var.random import Rng
from var.schedule import Schedule
from var.scripts.train import main
from var.tokenizers.continuous import KL, Posterior
from var.tokenizers.losses import Objective, Reconstruction
from var.training.checkpoint import Checkpoints
from var.training.kl import KLTask

SCHEDULE, CHANNELS = Schedule.scales([1, 2, 4]), 3
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": CHANNELS,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
}
SGD = torch.optim.SGD([torch.zeros(1)])


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the number of processes of the last test's run."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def images(batch: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def task(**changes: Any) -> KLTask:
    tokenizer = tiny.shaken(KL(vae=VAE), scale=0.15)
    assert isinstance(tokenizer, KL)
    objective = Objective({"pixels": Reconstruction(l1=0.5, l2=1.0)})
    return KLTask(
        tokenizer=tokenizer, objective=objective, schedule=SCHEDULE, sample=images(2), **changes
    )


def losses(made: KLTask, image: Tensor, seed: int = 0) -> dict[str, Tensor]:
    label = torch.zeros(len(image), dtype=torch.long)
    return made.losses(made.module, image, label, Rng.batch(seed, len(image)))


def deviation(made: KLTask) -> Tensor:
    return (1 / made.tokenizer.scale).flatten()


def moments(*posteriors: Posterior) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of what is drawn from posteriors, as a mixture."""
    mean = torch.cat([p.mean for p in posteriors])
    variance = torch.cat([p.log_variance.exp() for p in posteriors])
    places = (0, 2, 3)
    spread = variance.mean(places) + mean.var(places, correction=0)
    return mean.mean(places), spread.sqrt()


def test_the_first_batch_says_where_latents_lie() -> None:
    made = task()
    made.start(images(), torch.Generator())
    posterior = Posterior.of(made.tokenizer.compress(images(), SCHEDULE))
    mean, spread = moments(posterior)
    torch.testing.assert_close(made.tokenizer.shift.flatten(), mean)
    torch.testing.assert_close(deviation(made), spread, rtol=1e-4, atol=0)


@torch.no_grad()
def test_generators_see_latents_of_mean_nought_and_deviation_one() -> None:
    made, image = task(), images(200)
    made.start(image, torch.Generator())
    last = made.tokenizer.encode(image, SCHEDULE, Rng.batch(0, 200))[-1].flatten(0, 1)
    bound = 4 / len(last) ** 0.5
    torch.testing.assert_close(last.mean(dim=0), torch.zeros(CHANNELS), rtol=0, atol=bound)
    torch.testing.assert_close(last.std(dim=0), torch.ones(CHANNELS), rtol=0, atol=bound)


def known(rng: torch.Generator) -> Posterior:
    """Return what a batch may look like: latents of mean 2, -1, 0 and deviation 0.5, 5, 1.3."""
    mean, spread, noise = (
        torch.tensor(each).view(-1, 1, 1)
        for each in ([2.0, -1.0, 0.0], [0.3, 4.0, 0.5], [0.4, 3.0, 1.2])
    )
    means = mean + spread * torch.randn(6, CHANNELS, 4, 4, generator=rng)
    return Posterior(means, (2 * noise.log()).expand_as(means))


def test_running_statistics_follow_the_latents() -> None:
    made, rng = task(share=0.05), torch.Generator().manual_seed(0)
    for step in range(300):
        made.posterior = known(rng)
        made.stepped(step, SGD, rng)
    expected = torch.tensor([0.5, 5.0, 1.3])
    torch.testing.assert_close(deviation(made), expected, rtol=0.05, atol=0)
    shift = made.tokenizer.shift.flatten()
    assert ((shift - torch.tensor([2.0, -1.0, 0.0])).abs() < 0.05 * expected).all()


def test_a_step_mixes_the_old_distribution_with_that_of_the_batch() -> None:
    made, rng = task(share=0.25), torch.Generator().manual_seed(1)
    old = Posterior(
        *torch.tensor([0.1, 2 * math.log(2)]).view(2, 1, 1, 1, 1).expand(-1, 18, 3, 4, 4)
    )
    made.posterior = known(rng)  # six beside eighteen
    expected = moments(old, made.posterior)
    made.stepped(1, SGD, rng)
    torch.testing.assert_close(made.tokenizer.shift.flatten(), expected[0])
    torch.testing.assert_close(deviation(made), expected[1], rtol=1e-4, atol=0)


def test_latents_that_are_all_the_same_do_no_harm() -> None:
    made = task(share=1.0)
    made.posterior = Posterior.of(torch.full((2, 2 * CHANNELS, 4, 4), -30.0))
    made.stepped(1, SGD, torch.Generator())
    assert made.tokenizer.scale.isfinite().all()
    assert made.tokenizer.shift.flatten().tolist() == pytest.approx([-30.0] * CHANNELS)


@torch.no_grad()
def test_the_total_is_the_sum_of_the_terms_and_divergence_counts_per_pixel_value() -> None:
    made, image = task(weight=0.01), images()
    found = losses(made, image)
    assert {*found} == {"l1", "l2", "divergence", "total"}
    torch.testing.assert_close(found["total"], found["l1"] + found["l2"] + found["divergence"])
    posterior = Posterior.of(made.tokenizer.compress(image, SCHEDULE))
    nats = posterior.divergence().mean()
    torch.testing.assert_close(found["divergence"], 0.01 * nats / (3 * 8 * 8))
    noise = Rng.batch(0, 6).normal(CHANNELS, 4, 4)
    latent = posterior.mean + posterior.deviation * noise
    pixels = made.tokenizer.pixels(made.tokenizer.standardised(latent))
    error = 2 * ((pixels + 1) / 2 - image)
    torch.testing.assert_close(found["l2"], error.square().mean())
    torch.testing.assert_close(found["l1"], 0.5 * error.abs().mean())


def test_streams_decide_the_noise_and_what_is_noted_holds_no_graph() -> None:
    made = task()
    first, again, other = (losses(made, images(), seed)["total"] for seed in (0, 0, 9))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert made.posterior is not None
    assert not any(moment.requires_grad for moment in made.posterior)
    first.backward()
    assert all(p.grad is not None for p in made.module.parameters())


def test_the_report_tells_the_smallest_and_the_largest_deviation() -> None:
    made = task()
    made.tokenizer.scale.copy_(torch.tensor([0.5, 4.0, 2.0]).view(-1, 1, 1))
    assert made.report() == {"latent/least_deviation": 0.25, "latent/most_deviation": 2.0}


@torch.no_grad()
def test_the_preview_shows_images_above_their_scales() -> None:
    made = task()
    shown = made.preview(made.module)
    assert shown.shape == (2 * 4, 3, 8, 8) and torch.equal(shown[:2], images(2))
    canvas = made.tokenizer.blank(2, SCHEDULE)
    canvas = canvas.write(*made.tokenizer.encode(images(2), SCHEDULE))
    assert torch.equal(shown[-2:], made.tokenizer.decode(canvas))


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    made = task(weight=1e-4)
    made.tokenizer.vae.train()
    image = images(8).mean(dim=(2, 3), keepdim=True).expand(-1, -1, 8, 8)
    optimizer = torch.optim.AdamW(made.module.parameters(), lr=4e-3)
    found = list[float]()
    for step in range(25):
        optimizer.zero_grad()
        total = losses(made, image, seed=8 * step)["total"]
        total.backward()
        optimizer.step()
        made.stepped(step, optimizer, torch.Generator())
        found.append(float(total.detach()))
    assert max(found[-3:]) < 0.6 * found[0]


OVERRIDES = [
    "data=digits", "tokenizer=kl", "task=kl", "name=run", "schedule=[1,2,4,8]",
    "tokenizer.vae.block_out_channels=[8,16]",
    "tokenizer.vae.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "tokenizer.vae.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
    "tokenizer.vae.norm_num_groups=4", "trainer.steps=3", "trainer.batch_size=8",
    "trainer.checkpoint_every=2", "trainer.preview_every=0", "trainer.cpu=true",
]  # fmt: skip


def run(folder: Path, *overrides: str) -> dict[str, Tensor]:
    """Train by the real configs; return the weights of the newest checkpoint."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("train", [*OVERRIDES, f"runs={folder}", *overrides]))
    newest = sorted((folder / "run/checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


class Stop(Exception):
    pass


def test_an_interrupted_run_goes_on_to_the_last_bit_statistics_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, save = run(tmp_path / "a"), Checkpoints.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            run(tmp_path / "b")
    again = run(tmp_path / "b")
    assert {"tokenizer.shift", "tokenizer.scale"} <= whole.keys() == again.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    stored = store.load(tmp_path / "a/run").tokenizer
    assert isinstance(stored, KL) and stored.shift.all() and (stored.scale != 1).all()
