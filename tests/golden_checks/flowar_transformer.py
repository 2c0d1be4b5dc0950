"""Checks of FlowAR's transformer: features, training loss and sampling."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tests.golden_checks.case import Case
from tests.golden_checks.var_transformer import watch
from var.cache.base import CacheKind
from var.condition import Condition
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.heads.base import Prediction
from var.models.flowar import FlowAR
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Schedule, Span
from var.systems import flowar_keys
from var.tokenizers.resample import Resample, shrunk


class Recorded(Rng):
    """Streams that play recorded noise back."""

    def __init__(self, normal: list[Tensor], uniform: Tensor | None = None) -> None:
        super().__init__([0] * len(normal[0]))
        self.noise, self.times = iter(normal), uniform

    def normal(self, *shape: int) -> Tensor:
        return next(self.noise).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        assert self.times is not None
        return self.times.view(-1, *shape)


class Latents:
    """A tokenizer that is handed latents."""

    any_schedule = True

    def blank(self, batch: int, schedule: Schedule) -> Resample:
        return Resample(
            schedule,
            0,
            torch.zeros(batch, 16, *schedule.grids[-1]),
            (torch.zeros(batch, schedule.sizes[0], 16),),
            lambda tokens: tokens,
        )

    def encode(self, image: Tensor, schedule: Schedule, rng: Rng | None = None) -> list[Tensor]:
        return shrunk(image, schedule)


class Observed(Sequential):
    """Sequential decoding that keeps the tokens it settled on, group by group."""

    def begin(self, kind: CacheKind | None = None) -> None:
        super().begin(kind)
        self.tokens: list[Tensor] = []

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        self.tokens += super().settle(prediction, rng)
        return self.tokens[-1:]


def condition(case: Case) -> Condition:
    rate = case.config["model"]["label_drop_prob"]
    return Condition(case.inputs["labels"]).dropped(case.inputs["u_label_drop"], rate)


@torch.no_grad()
def check_backbone(case: Case) -> None:
    parts = case.build()
    model, schedule, latent = parts.model, parts.schedule, case.inputs["latents"]
    canvas = Latents().blank(len(latent), schedule).write(*shrunk(latent, schedule))
    seen: dict[str, Tensor] = {}
    handles = [
        watch(model.inlet_norm, seen, "z_proj_ln"),
        watch(model.encoder_norm, seen, "encoder_norm"),
        watch(model.decoder_norm, seen, "decoder_norm"),
    ]
    for stack, theirs in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        for i, block in enumerate(stack):
            handles.append(watch(block, seen, f"{theirs}_blocks.{i}"))
            handles.append(watch(block.attention.proj, seen, f"{theirs}_blocks.{i}.attn"))
    seen["z"] = model(canvas.read(schedule[:]), schedule[:], condition(case))
    for handle in handles:
        handle.remove()
    for name, tensor in seen.items():
        if f"train/{name}" in case.outputs:
            case.expect(f"train/{name}", tensor)
    check_cached(case, model, schedule, canvas)


def check_cached(case: Case, model: FlowAR, schedule: Schedule, canvas: Resample) -> None:
    cache, features = model.new_cache(), list[Tensor]()
    label = condition(case)
    for k in range(len(schedule)):
        span = schedule[k : k + 1]
        features.append(model(canvas.read(span), span, label, cache))
        cache.advance(span)
    case.expect("cached/z", torch.cat(features, dim=1))
    keys, _ = cache.layers[-1].tensors()[0].unbind()
    case.expect("cached/k_dec_last", keys)


def check_train_loss(case: Case) -> None:
    parts = case.build()
    model, schedule = parts.model, parts.schedule
    scales, span = range(len(schedule)), schedule[:]
    rng = Recorded(
        [torch.cat([case.inputs[f"noise_{k}"] for k in scales], dim=1)],
        torch.cat([case.inputs[f"t_{k}"].flatten(1) for k in scales], dim=1),
    )
    latent = case.inputs["latents"]
    tokens = shrunk(latent, schedule)
    x = Latents().blank(len(latent), schedule).write(*tokens).read(span)
    h = model(x, span, condition(case))
    each = model.head.loss(h, torch.cat(tokens, dim=1), span, rng)
    total = each.mean()
    total.backward()
    case.expect("loss", total)
    case.expect("per_scale_per_sample", per_scale(each, span))
    published = flowar_keys.MODEL.publish(
        {name: weight.grad for name, weight in model.named_parameters()}
    )
    norm = torch.stack([gradient.norm() for gradient in published.values()]).norm()
    case.expect("grad_norm_total", norm)
    for name in case.config["grads"]:
        case.expect(f"grad/{name}", published[name])


def per_scale(each: Tensor, span: Span) -> Tensor:
    """Return the unweighted mean error of each scale of each image (B, K)."""
    weight = len(span) / span.sizes[-1]
    return torch.stack([part.mean(dim=1) / weight for part in each.split(span.sizes, 1)], dim=1)


@torch.no_grad()
def check_sample(case: Case) -> None:
    parts = case.build()
    labels = Condition(case.inputs["labels"])
    noise = [case.inputs[f"noise_{k}"][: len(labels)] for k in range(len(parts.schedule))]
    for name, run in case.config["runs"].items():
        cfg = run["cfg"] if run["cfg"] >= 1 else 1.0
        sampling = Sampling(
            guidance=(1.0, cfg),
            interval=run["guidance"],
            steps=run["num_steps"],
            solver="published",
        )
        seen: dict[str, Any] = {}
        handle = watch(parts.model, seen, "z")
        decoding = Observed(parts.model)
        rng = Recorded(noise)
        for canvas in decide(Latents(), parts.schedule, labels, decoding, sampling, rng):
            k = canvas.done - 1
            drawn = {"z_cond": seen["z"][: len(labels)], "z_uncond": seen["z"][len(labels) :]}
            for part, tensor in {**drawn, "x": decoding.tokens[k]}.items():
                if f"{name}/{part}_{k}" in case.outputs:
                    case.expect(f"{name}/{part}_{k}", tensor)
        handle.remove()
        last = parts.schedule.grids[-1]
        case.expect(
            f"{name}/tokens", rearrange(decoding.tokens[-1], "B (h w) C -> B C h w", h=last[0])
        )
        if f"{name}/cfg_scale_per_scale" in case.outputs:
            last = len(parts.schedule) - 1
            scales = [sampling.guide(k / max(1, last)).scale for k in range(last + 1)]
            case.expect(f"{name}/cfg_scale_per_scale", torch.tensor(scales))
