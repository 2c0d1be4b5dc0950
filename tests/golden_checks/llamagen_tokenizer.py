"""Checks of LlamaGen's tokenizer, its training losses and its handling of images.

How its numbers map to ours: see `var.systems.llamagen_vq`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from tests.golden_checks.case import Case, Excuse
from var.data.transforms import centre_crop
from var.pixels import to_uint8
from var.schedule import Schedule
from var.systems import llamagen_vq
from var.tokenizers.adversarial import Adversarial, PatchDiscriminator, hinge, pull, vanilla
from var.tokenizers.losses import Objective, Reconstruction
from var.tokenizers.perceptual import Perceptual
from var.tokenizers.quantizer import Quantizer
from var.tokenizers.singlescale import VQ
from var.training.health import count_codes, usage


def zero_one(image: Tensor) -> Tensor:
    return (image + 1) / 2


@torch.no_grad()
def check_model(case: Case) -> None:
    tokenizer = case.build().tokenizer
    assert isinstance(tokenizer, VQ)
    image = case.inputs["image"]
    batch, height, width = image.shape[0], *image.shape[2:]
    schedule = Schedule.raster((height // tokenizer.factor, width // tokenizer.factor))
    case.expect("enc", tokenizer.encoder(image))
    latent = tokenizer.features(zero_one(image))
    case.expect("pre_quant", latent)
    code = tokenizer.compress(zero_one(image), schedule)
    case.expect("indices", code.flatten())
    canvas = tokenizer.blank(batch, schedule).write(*tokenizer.encode(zero_one(image), schedule))
    case.expect("entry_channel_last", canvas.latent.movedim(1, -1))
    case.expect("quant", tokenizer.quantizer(latent, schedule).latent)
    inner = tokenizer.post_quant_conv(case.outputs["quant"])
    case.expect("post_quant", inner)
    case.expect("dec_mid0", tokenizer.decoder.mid.block_1(tokenizer.decoder.conv_in(inner)))
    reconstruction, _ = tokenizer(zero_one(image), schedule)
    case.expect("recon", reconstruction * 2 - 1)
    case.expect("decode_code", tokenizer.pixels(canvas.latent))
    within = zero_one(case.outputs["decode_code"]).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(canvas), within, rtol=0, atol=case.about["atol"])


@torch.no_grad()
def check_block(case: Case) -> None:
    block = case.build().model
    assert block is not None
    case.expect("y", block(case.inputs["x"]))


def check_losses(case: Case) -> None:
    quantizer = case.build().tokenizer
    assert isinstance(quantizer, Quantizer)
    quantizer.train()
    z = case.inputs["z"].clone().requires_grad_()
    quantised = quantizer(z, Schedule.raster(tuple(z.shape[2:])))
    case.expect("quant", quantised.latent)
    ids = quantised.tokens[0]
    case.expect("indices", ids.flatten())
    looked_up = quantizer.vectors(z)
    losses = quantizer.losses(looked_up, quantizer.embed(ids))
    zero = torch.zeros(())
    names = {"vq_loss": "codebook", "commit_loss": "commitment", "entropy_loss": "entropy"}
    for theirs, ours in names.items():
        case.expect(theirs, losses.get(ours, zero))
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(quantised.loss, total)
    (quantised.loss + (quantised.latent * case.inputs["wq"]).sum()).backward()
    assert z.grad is not None
    case.expect("grad_z", z.grad)
    grads = {name: weight.grad for name, weight in quantizer.named_parameters()}
    published = llamagen_vq.QUANTIZER.publish(grads)  # type: ignore[arg-type]
    case.expect("grad_embedding", published["embedding.weight"])
    check_usage(case, ids)


def check_usage(case: Case, ids: Tensor) -> None:
    """The original's record of the last codes, a queue that begins full of code 0."""
    if not case.config["show_usage"]:
        return
    case.expect("codebook_used_tail", ids.flatten().float())
    seen = torch.cat([ids.new_zeros(1), ids.flatten()])
    case.expect("codebook_usage", usage(count_codes([seen], case.config["n_e"]))[0][0])


def check_discriminator(case: Case) -> None:
    judge = case.build().model
    assert isinstance(judge, PatchDiscriminator)
    with torch.no_grad():
        case.expect("logits_real_eval", judge(case.inputs["real"]))
        judge.train()
        real, fake = judge(case.inputs["real"]), judge(case.inputs["fake"])
    case.expect("logits_real", real)
    case.expect("logits_fake", fake)
    case.expect("d_hinge", hinge(real, fake))
    case.expect("d_vanilla", vanilla(real, fake))
    statistics = llamagen_vq.DISCRIMINATOR.publish(judge.state_dict())
    for kind in ("mean", "var"):
        case.expect(f"running_{kind}_main3", statistics[f"main.3.running_{kind}"])
    term = Adversarial(discriminator=case.build().model, weight=1.0)  # type: ignore[arg-type]
    losses = term.train()(zero_one(case.inputs["real"]), zero_one(case.inputs["fake"]))
    case.expect("g_hinge", losses["adversarial"])
    case.expect("d_hinge", losses["discriminator"])


class Recorded(nn.Module):
    """Stands for the network of LPIPS: its features were recorded."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.features: list[list[Tensor]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.features.pop(0)


@torch.no_grad()
def check_perceptual(case: Case) -> None:
    pytest.importorskip("lpips")
    with mock.patch("lpips.pretrained_networks.vgg16", Recorded):
        term = Perceptual(net="vgg").eval()
    assert set(case.state) <= set(term.lpips.state_dict())
    term.lpips.load_state_dict(case.state, strict=False)
    case.expect("scaled", term.lpips.scaling_layer(case.inputs["image"]))
    stages = range(len(case.config["chns"]))
    features = [[case.inputs[f"feat_{side}{i}"] for i in stages] for side in "ab"]
    image = torch.zeros(len(features[0][0]), 3, 8, 8)
    term.lpips.net.features = [*features]
    value, parts = term.lpips(image, image, retPerLayer=True)
    case.expect("value", value)
    for i, part in enumerate(parts):
        case.expect(f"part{i}", part)
    term.lpips.net.features = [*features]
    distance = term(image, image)["perceptual"]
    torch.testing.assert_close(distance, case.outputs["value"].mean(), rtol=1e-4, atol=1e-5)


class StandIn(nn.Module):
    """The recorded perceptual distance: weighted absolute differences."""

    def __init__(self, weight: Tensor, share: float) -> None:
        super().__init__()
        self.weight, self.share = weight, share

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        distance = (2 * (image - reconstruction)).abs() * self.weight
        return {"perceptual": self.share * distance.mean()}


def objective(case: Case) -> Objective:
    """Return the recorded objective, with a discriminator as it was before the first step."""
    config = case.config
    state = {k.removeprefix("discriminator."): v.clone() for k, v in case.state.items()}
    shape = {key: config[key] for key in ("ndf", "n_layers")}
    judge = llamagen_vq.discriminator(shape, state).model
    assert judge is not None
    pixels = {"l1": 0.0, "l2": 0.0, config["reconstruction_loss"]: config["reconstruction_weight"]}
    adversarial = Adversarial(
        discriminator=judge,
        weight=config["disc_weight"],
        discriminator_weight=config["disc_weight"],
        start=config["disc_start"],
        kind=config["disc_loss"],
        wait=True,
        adaptive=config["disc_adaptive_weight"],
    )
    terms = {
        "pixels": Reconstruction(**pixels),
        "perceptual": StandIn(case.inputs["perc_w"], config["perceptual_weight"]),
        "adversarial": adversarial,
    }
    return Objective(terms).train()


def check_total(case: Case) -> None:
    real, feat = case.inputs["real"], case.inputs["feat"]
    stem = "gen_loss_step"
    for step in [int(n.removeprefix(stem)) for n in case.outputs if n.startswith(stem)]:
        last = case.inputs["last"].clone().requires_grad_()
        made = objective(case)
        made.terms["adversarial"].stepped(step)
        reconstruction = zero_one(F.conv2d(feat, last, padding=1))
        losses = made(zero_one(real), reconstruction, last)
        case.expect(f"disc_loss_step{step}", losses.pop("discriminator"))
        loss = torch.stack(list(losses.values())).sum()
        case.expect(f"{stem}{step}", loss + case.inputs["codebook_losses"].sum())
        (gradient,) = torch.autograd.grad(loss, last)
        case.expect(f"grad_last_step{step}", gradient)
    check_pull(case)


def check_pull(case: Case) -> None:
    made, last = objective(case), case.inputs["last"].clone().requires_grad_()
    reconstruction = F.conv2d(case.inputs["feat"], last, padding=1)
    pair = zero_one(case.inputs["real"]), zero_one(reconstruction)
    before = [made.terms[name](*pair) for name in ("pixels", "perceptual")]
    sums = sum(value for losses in before for value in losses.values())
    fooled = -made.terms["adversarial"].discriminator(reconstruction).mean()
    case.expect("adaptive_weight", pull(sums, fooled, last))  # type: ignore[arg-type]


def within_a_level(case: Case, name: str, actual: Tensor) -> None:
    """Compare levels 0..255: Pillow's kernels, and ties in rounding, move some of them by one."""
    assert actual.shape == case.outputs[name].shape, f"out/{name}"
    difference = actual.float() - case.outputs[name].float()
    assert difference.abs().max() <= 1 and difference.mean().abs() < 0.1, f"out/{name}"
    case.compared.add(name)


def check_images(case: Case) -> None:
    photo = Image.fromarray(case.inputs["photo"].numpy())
    transform = centre_crop(case.config["crop"], enlarge=1.0, resize="halving")
    crop = to_uint8(transform(photo)[None])[0]
    within_a_level(case, "cropped", rearrange(crop, "C h w -> h w C"))
    side = case.config["eval_size"]
    resized = F.interpolate(case.inputs["sample"], (side, side), mode="bicubic")
    case.expect("resized", resized)
    within_a_level(case, "uint8", rearrange(to_uint8(zero_one(resized)), "B C h w -> B h w C"))


CHECKS: dict[str, Callable[[Case], None]] = {
    "vq_model": check_model,
    "vq_block": check_block,
    "vq_losses": check_losses,
    "patchgan": check_discriminator,
    "lpips_head": check_perceptual,
    "vq_total_loss": check_total,
    "image_io": check_images,
}

_EXCHANGED = (
    "logits and targets of the cross entropy are exchanged, a slip of the original: what comes out "
    "is no loss to train with, and no recipe does"
)

NOT_APPLICABLE: tuple[Excuse, ...] = (
    Excuse("patchgan", "d_non_saturating", _EXCHANGED),
    Excuse("patchgan", "g_non_saturating", _EXCHANGED),
)
