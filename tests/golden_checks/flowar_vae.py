"""Checks of the KL autoencoder of FlowAR and MAR. How its numbers map: see `var.systems.kl`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn

from tests.golden_checks.case import Case
from var.schedule import Schedule
from var.systems import kl
from var.tokenizers.continuous import KL, Posterior

_MODULE = "output of module "


class Recorded:
    """Streams that hand out noise (B, C, h, w) that was recorded."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def normal(self, *shape: int) -> Tensor:
        return self.noise.view(-1, *shape)


def named(vae: nn.Module, case: Case, name: str) -> nn.Module:
    """Return the module of ours that does what a published one does: it has the same weights."""
    table = kl.table(len(case.config["vae"]["ch_mult"]))
    weights = {key: weight for key, weight in case.state.items() if key.startswith(f"{name}.")}
    paths = [key.split(".")[:-1] for key in table.adopt(weights)]
    return vae.get_submodule(".".join(os.path.commonprefix(paths)))


@contextmanager
def compared(case: Case, tokenizer: KL) -> Iterator[None]:
    """Compare what the recorded modules of the autoencoder make meanwhile."""
    hooks = [
        named(tokenizer.vae, case, text.removeprefix(_MODULE)).register_forward_hook(
            lambda module, inputs, output, name=name: case.expect(name, output.clone())
        )
        for name, text in case.about["outputs"].items()
        if text.startswith(_MODULE)
    ]
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def check_encode(case: Case) -> None:
    tokenizer = case.build().tokenizer
    assert isinstance(tokenizer, KL)
    image, noise = (case.inputs["image"] + 1) / 2, case.inputs["posterior_noise"]
    h, w = noise.shape[-2:]
    schedule = Schedule.scales([1, (h, w)])
    with compared(case, tokenizer):
        moments = tokenizer.compress(image, schedule)
    posterior = Posterior.of(moments)
    case.expect("moments", moments)
    case.expect("mean", posterior.mean)
    case.expect("std", posterior.deviation)
    tokens = tokenizer.tokens(moments, schedule, Recorded(noise))  # type: ignore[arg-type]
    case.expect("latent_scaled", rearrange(tokens[-1], "B (h w) C -> B C h w", h=h, w=w))


@torch.no_grad()
def check_decode(case: Case) -> None:
    tokenizer = case.build().tokenizer
    assert isinstance(tokenizer, KL)
    latent = case.inputs["latent_scaled"]
    schedule = Schedule.scales([tuple(latent.shape[-2:])])
    canvas = tokenizer.blank(len(latent), schedule)
    canvas = canvas.write(rearrange(latent, "B C h w -> B (h w) C"))
    with compared(case, tokenizer):
        image = tokenizer.decode(canvas)
    case.expect("image", tokenizer.pixels(canvas.latent))
    within = (case.outputs["image"].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(image, within, rtol=0, atol=case.about["atol"])
