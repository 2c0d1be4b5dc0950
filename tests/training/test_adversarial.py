"""Training tokenizers against a discriminator: what reaches which weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.adversarial import Adversarial, PatchDiscriminator
from var.tokenizers.continuous import KL
from var.tokenizers.losses import Objective, Reconstruction
from var.tokenizers.singlescale import VQ
from var.training.kl import KLTask
from var.training.tokenizer import TokenizerTask

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def objective(start: int = 0) -> Objective:
    torch.manual_seed(0)
    judge = PatchDiscriminator(width=8, layers=2)
    adversary = Adversarial(discriminator=judge, weight=0.5, start=start, wait=True, adaptive=True)
    return Objective({"pixels": Reconstruction(), "adversarial": adversary})


def grid(start: int = 0) -> TokenizerTask:
    vq = VQ(vocabulary=8, channels=2, inner=4, width=8, multipliers=(1, 1), blocks=1, groups=4)
    tiny.shaken(vq, scale=0.2)
    return TokenizerTask(
        tokenizer=vq, objective=objective(start), schedule=Schedule.raster(8), sample=IMAGE
    )


def latents(start: int = 0) -> KLTask:
    vae = {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": 2}
    kl = tiny.shaken(KL(vae=vae), scale=0.2)
    schedule = Schedule.scales([16])
    return KLTask(tokenizer=kl, objective=objective(start), schedule=schedule, sample=IMAGE)  # type: ignore[arg-type]


TASKS = pytest.mark.parametrize("make", [grid, latents])


def losses(task: Any) -> dict[str, Tensor]:
    return task.losses(task.module, IMAGE, torch.zeros(2, dtype=torch.long), Rng.batch(0, 2))


@TASKS
def test_the_discriminator_pulls_at_the_last_layer_as_hard_as_the_pixels_do(make: Any) -> None:
    task = make()
    found, parts = losses(task), task.tokenizer
    last = getattr(parts, "vae", parts).decoder.conv_out.weight
    pixels, judged = (
        torch.autograd.grad(found[name], last, retain_graph=True)[0].norm()
        for name in ("l2", "adversarial")
    )
    torch.testing.assert_close(judged, 0.5 * pixels, rtol=0.02, atol=0)


@TASKS
def test_before_its_start_the_adversary_changes_nothing(make: Any) -> None:
    task = make(start=1)
    first, optimizer = losses(task), torch.optim.SGD(task.module.parameters())
    task.stepped(1, optimizer, torch.Generator())
    third = losses(task)
    assert not first["adversarial"] and not first["discriminator"]
    assert third["adversarial"] and third["discriminator"]
    first["total"].backward()
    judge = task.module.objective.terms["adversarial"].discriminator
    assert not any(weight.grad.any() for weight in judge.parameters())
    third["total"].backward()
    assert all(weight.grad.any() for weight in judge.parameters() if weight.ndim > 1)
