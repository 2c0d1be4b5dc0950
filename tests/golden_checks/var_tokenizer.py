"""Checks of VAR's tokenizer: quantizer alone, whole VQ-VAE, published sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.golden_checks.case import Case
from var.schedule import Schedule
from var.systems import var_keys
from var.tokenizers.multiscale import MultiScaleVQ
from var.tokenizers.residual import MultiScaleQuantizer, Quantised


def grid(vectors: Tensor, schedule: Schedule, k: int) -> Tensor:
    """Return the vectors (B, L_k, C) of scale k as a map (B, C, h, w)."""
    h, w = schedule.grids[k]
    return rearrange(vectors, "B (h w) C -> B C h w", h=h, w=w)


def check_quantizer(case: Case) -> None:
    parts = case.build()
    quantizer, schedule, f = parts.tokenizer, parts.schedule, case.inputs["f"]
    tokens = quantizer.quantise(f, schedule)
    canvas = quantizer.blank(len(f), schedule)
    for k, ids in enumerate(tokens):
        case.expect(f"idx_{k}", ids)
        canvas = canvas.write(ids)
        case.expect(f"fhat_{k}", canvas.latent)
        case.expect(f"ar_fhat_{k}", canvas.latent)
        last = k + 1 == len(schedule)
        view = canvas.latent if last else grid(canvas.views[k + 1], schedule, k + 1)
        case.expect(f"ar_next_{k}", view)
    case.expect("embed_to_fhat_max", canvas.latent)
    if len(schedule) > 1:
        case.expect("var_input", canvas.read(schedule[1:]))
    case.expect("embed_to_fhat_growing", grown(quantizer, tokens, schedule))
    check_phi(case, quantizer, schedule)
    if case.config["rect"]:
        check_other_schedule(case, quantizer, Schedule.scales(case.config["rect"]))
    if case.config["train"]:
        check_training(case, quantizer, schedule)


def grown(quantizer: MultiScaleQuantizer, tokens: list[Tensor], schedule: Schedule) -> Tensor:
    """Return the latent of the original's experimental path, grown from scale to scale."""
    latent = torch.zeros(len(tokens[0]), quantizer.channels, *schedule.grids[0])
    for k, ids in enumerate(tokens):
        latent = F.interpolate(latent, schedule.grids[k], mode="bicubic")
        vectors = grid(quantizer.embed(ids), schedule, k)
        latent = latent + quantizer.lift(vectors, k, schedule, schedule.grids[k])
    return latent


def check_phi(case: Case, quantizer: MultiScaleQuantizer, schedule: Schedule) -> None:
    if quantizer.phi:
        scales = len(schedule)
        indices = [quantizer.phi_index(k, scales) for k in range(scales)]
        case.expect("phi_index", torch.tensor(indices))


def check_other_schedule(case: Case, quantizer: MultiScaleQuantizer, schedule: Schedule) -> None:
    tokens = quantizer.quantise(case.inputs["f_rect"], schedule)
    for k, ids in enumerate(tokens):
        case.expect(f"rect_idx_{k}", ids)
    canvas = quantizer.blank(len(tokens[0]), schedule).write(*tokens)
    case.expect("rect_fhat_last", canvas.latent)


def check_training(case: Case, quantizer: MultiScaleQuantizer, schedule: Schedule) -> None:
    f = case.inputs["f"].clone().requires_grad_()
    quantised: Quantised = quantizer.train()(f, schedule)
    total = quantised.loss + (quantised.latent * case.inputs["cotangent"]).mean()
    total.backward()
    case.expect("train_fhat", quantised.latent)
    case.expect_numbers("train_vq_loss", quantised.loss)
    case.expect_numbers("train_total", total)
    case.expect("grad_f", f.grad)
    grads = published_grads(case, quantizer, "")
    case.expect("grad_embedding", grads.pop("embedding.weight"))
    for key, grad in grads.items():
        case.expect(f"grad/{key}", grad)
    check_usage(case, quantised.tokens, cells=f.shape[0] * f.shape[2] * f.shape[3])


def published_grads(case: Case, module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the gradients of a module under the original's names; unused ones as zeros there."""
    sharing = case.config["share_quant_resi"]
    table = var_keys.tokenizer(sharing) if prefix else var_keys.quantizer(sharing)
    named = dict(module.named_parameters()).items()
    return table.publish({k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in named})


def check_usage(case: Case, tokens: list[Tensor], cells: int) -> None:
    """The original's running counts of codes: a copy at its very first scale, then a tenth."""
    before = case.state["ema_vocab_hit_SV"]
    vocabulary = before.shape[1]
    counts = [torch.bincount(ids.flatten(), minlength=vocabulary).float() for ids in tokens]
    after = [n if k == 0 else before[k] * 0.9 + n * 0.1 for k, n in enumerate(counts)]
    case.expect("ema_vocab_hit_SV", torch.stack(after))
    least = cells / vocabulary * 0.08
    usages = [(row >= least).float().mean() * 100 for row in case.outputs["ema_vocab_hit_SV"]]
    case.expect("train_usages", torch.stack(usages))


def check_vqvae(case: Case) -> None:
    parts = case.build()
    tokenizer, schedule = parts.tokenizer, parts.schedule
    image = (case.inputs["img"] + 1) / 2
    case.expect("enc", tokenizer.encoder(case.inputs["img"]))
    case.expect("f", tokenizer.features(image))
    tokens = tokenizer.encode(image, schedule)
    canvas = tokenizer.blank(len(image), schedule)
    for k, ids in enumerate(tokens):
        case.expect(f"idx_{k}", ids)
        canvas = canvas.write(ids)
        case.expect(f"recon_{k}", tokenizer.decode(canvas) * 2 - 1)
    if len(schedule) > 1:
        case.expect("var_input", canvas.read(schedule[1:]))
    latent = grown(tokenizer.quantizer, tokens, schedule)
    case.expect("idxBl_to_img_growing_last", tokenizer.pixels(latent).clamp(-1, 1))
    check_phi(case, tokenizer.quantizer, schedule)
    check_vqvae_training(case, tokenizer, schedule, image)


def check_vqvae_training(
    case: Case, tokenizer: MultiScaleVQ, schedule: Schedule, image: Tensor
) -> None:
    reconstruction, quantised = tokenizer.train()(image, schedule)
    pixels = reconstruction * 2 - 1
    loss = F.mse_loss(pixels, case.inputs["img"]) + quantised.loss
    loss.backward()
    case.expect("train_rec", pixels)
    case.expect_numbers("train_vq_loss", quantised.loss)
    case.expect_numbers("train_loss", loss)
    grads = published_grads(case, tokenizer, "quantize.")
    for name in (name for name in case.outputs if name.startswith("grad/")):
        case.expect(name, grads[name.removeprefix("grad/")])


@torch.no_grad()
def check_vqvae_published(case: Case) -> None:
    parts = case.build()
    tokenizer, schedule = parts.tokenizer, parts.schedule
    pixels = rearrange(case.inputs["img_u8"], "h w C -> 1 C h w").float() / 255
    scale = schedule.grids[-1][0] * tokenizer.factor // pixels.shape[-1]
    image = F.interpolate(pixels, scale_factor=scale, mode="nearest")
    f = tokenizer.features(image)
    case.expect("f", f)
    canvas = tokenizer.blank(1, schedule)
    for k, ids in enumerate(tokenizer.quantizer.quantise(f, schedule)):
        case.expect(f"idx_{k}", ids)
        canvas = canvas.write(ids)
        if f"recon_{k}_s8" in case.outputs:
            case.expect(f"recon_{k}_s8", tokenizer.decode(canvas)[..., ::8, ::8] * 2 - 1)
    case.expect("fhat_last", canvas.latent)
    reconstruction = tokenizer.decode(canvas) * 2 - 1
    case.expect("recon_last_s8", reconstruction[..., ::8, ::8])
    mean, std = reconstruction.mean(dim=(0, 2, 3)), reconstruction.std(dim=(0, 2, 3))
    case.expect("recon_last_chan_mean_std", torch.stack([mean, std]))
    case.expect("var_input_s16", canvas.read(schedule[1:])[:, ::16])
