"""Checks of VAR's training: one trainer's steps, schedules, parameter groups, image transform."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.golden_checks.case import Case
from var.condition import Condition
from var.data.transforms import centre_crop
from var.models.var import VAR
from var.random import Rng
from var.sampling import Guide
from var.schedule import Span
from var.systems import var_keys
from var.training.loss import loss, progressive_weights
from var.training.optim import cosine_decay, groups, published_rate


class Trainer:
    """The recorded steps on one batch, made of our pieces."""

    def __init__(self, case: Case) -> None:
        self.case, self.parts = case, case.build()
        self.model: VAR = self.parts.model
        self.schedule = self.parts.schedule
        self.image = (case.inputs["img"] + 1) / 2
        rate = case.config["var"]["cond_drop_rate"]
        self.condition = Condition(case.inputs["label"]).dropped(case.inputs["drop_uniform"], rate)
        self.tokens = self.parts.tokenizer.encode(self.image, self.schedule)

    def features(self, span: Span) -> Tensor:
        canvas = self.parts.tokenizer.blank(len(self.image), self.schedule).write(*self.tokens)
        return self.model(canvas.read(span), span, self.condition)

    def logits(self, span: Span) -> Tensor:
        return self.model.head(self.features(span), span, Guide(scale=1, rows=1)).logits

    def each(self, *, smoothing: float) -> Tensor:
        """Return the loss of each token (B, L), by the product's own loss."""
        self.model.head.label_smoothing = smoothing
        return loss(
            self.model,
            self.parts.tokenizer,
            self.schedule,
            self.image,
            self.condition,
            Rng([0]),
        )

    @torch.no_grad()
    def log(self, span: Span) -> list[Tensor | float]:
        """Return loss and accuracy in percent over all tokens and over the last scale's.

        The latter are -1 if the span leaves the last scale out.
        """
        logits = self.logits(span)
        target = torch.cat(self.tokens, dim=1)[:, span.positions]
        each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        right = (logits.argmax(dim=-1) == target).float() * 100
        if span.stop < len(self.schedule):
            return [each.mean(), -1, right.mean(), -1]
        last = self.schedule.sizes[-1]
        tail = [x[:, -last:].mean() for x in (each, right)]
        return [each.mean(), tail[0], right.mean(), tail[1]]


def rates(plan: dict[str, Any], step: int, warmup: float, total: int) -> tuple[float, float]:
    """Return learning rate and weight decay of a step."""
    rate = published_rate(
        step,
        kind=plan["sche"],
        peak=plan["peak_lr"],
        warmup_steps=round(warmup),
        total_steps=total,
        warmup_start=plan["wp0"],
        final=plan["wpe"],
    )
    return rate, cosine_decay(step, total, plan["wd"], plan["wd_end"])


def check_train_step(case: Case) -> None:
    trainer = Trainer(case)
    case.expect("gt_ids", torch.cat(trainer.tokens, dim=1))
    case.expect_numbers("eval_stats", *trainer.log(trainer.schedule[:]))
    trainer.model.train()
    check_progressive(trainer)
    check_steps(trainer)


def check_steps(trainer: Trainer) -> None:
    case, model, recipe = trainer.case, trainer.model, trainer.case.about["train"]
    numbers = re.search(r"betas \(([\d.]+),\s*([\d.]+)\) eps ([\de.-]+)", recipe["optimizer"])
    beta1, beta2, eps = (float(number) for number in numbers.groups())
    plan, span = recipe["schedule"], trainer.schedule[:]
    optimizer = torch.optim.AdamW(groups(model, plan["wd"]), betas=(beta1, beta2), eps=eps)
    for j, step in enumerate(recipe["iterations"]):
        rate, decay = rates(plan, step, plan["wp_it"], plan["max_it"])
        for group in optimizer.param_groups:
            group.update(lr=rate, weight_decay=decay if group["weight_decay"] else 0.0)
        case.expect_numbers(f"lr_wd_{j}", rate, rate, decay, decay)
        case.expect_numbers(f"log_{j}", *trainer.log(span))
        each = trainer.each(smoothing=recipe["label_smooth"])
        total = each.mean()
        optimizer.zero_grad()
        total.backward()
        case.expect_numbers(f"loss_{j}", total)
        if j == 0:
            case.expect("logits_0", trainer.logits(span))
            case.expect("per_token_ce_0", each)
            expect_tensors(case, "grad/", {k: p.grad for k, p in model.named_parameters()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["grad_clip"])
        case.expect_numbers(f"grad_norm_{j}", norm)
        optimizer.step()
        expect_tensors(case, f"param_after_{j}/", dict(model.named_parameters()))


def expect_tensors(case: Case, prefix: str, ours: dict[str, Tensor]) -> None:
    """Compare those tensors that were recorded, named as in the published state dict."""
    theirs = var_keys.MODEL.publish(ours)
    for name in case.outputs:
        if name.startswith(prefix):
            case.expect(name, theirs[name.removeprefix(prefix)])


def stages(case: Case, scales: int) -> Iterator[tuple[int, float]]:
    """Yield last scale (-1: all) and warm-up factor of each recorded progressive step.

    A stage's newest scale is warmed up, except in the first stage of a run; the stage that ends
    with the last scale counts as ordinary training.
    """
    newest, first, done = -1, True, 0
    for entry in case.about["train"]["prog"]:
        if entry["prog_si"] != newest:
            first, newest, done = first and newest == -1, entry["prog_si"], 0
        done += 1
        factor = 1.0 if first else min(max(done / entry["prog_wp_it"], 0.01), 1.0)
        yield (-1 if newest == scales - 1 else newest), factor


def check_progressive(trainer: Trainer) -> None:
    case, schedule = trainer.case, trainer.schedule
    trainer.model.head.label_smoothing = case.about["train"]["label_smooth"]
    for j, (newest, factor) in enumerate(stages(case, len(schedule))):
        case.expect_numbers(f"prog_wp_{j}", factor, newest)
        stop = len(schedule) if newest < 0 else newest + 1
        span, factor = schedule[:stop], 1.0 if newest < 0 else factor
        target = torch.cat(trainer.tokens, dim=1)[:, span.positions]
        each = trainer.model.head.loss(trainer.features(span), target, span, Rng([0]))
        case.expect(f"prog_ce_{j}", each)
        weights = progressive_weights(schedule, stop - 1, factor)
        case.expect_numbers(f"prog_loss_{j}", (each * weights).sum(dim=1).mean())
        case.expect_numbers(f"prog_log_{j}", *trainer.log(span))


def check_schedules(case: Case) -> None:
    for i, plan in enumerate(case.config["schedules"]):
        total = plan["epochs"] * plan["iters_per_epoch"]
        warmup = plan["wp_epochs"] * plan["iters_per_epoch"]
        steps = case.inputs[f"it_{i}"].tolist()
        assert steps == [value["it"] for value in plan["values"]]
        pairs = torch.tensor([rates(plan, step, warmup, total) for step in steps])
        case.expect(f"lr_{i}", pairs[:, 0])
        case.expect(f"wd_{i}", pairs[:, 1])
        case.expect(f"min_lr_wd_{i}", pairs)
        case.expect(f"group_wd_{i}", torch.stack([torch.zeros(len(steps)), pairs[:, 1]], dim=1))
    for variant, expected in case.about["param_groups"].items():
        check_groups(variant, expected)


def check_groups(variant: str, expected: dict[str, list[str]]) -> None:
    """Compare the parameters with and without decay; `variant` names the model's two switches."""
    l2_norm, shared = (word == "True" for word in re.findall("True|False", variant))
    blocks = {re.match(r"blocks\.(\d+)", k) for k in expected["decay"]} - {None}
    with torch.device("meta"):
        model = VAR(
            depth=1 + max(int(found[1]) for found in blocks),
            width=8,
            heads=2,
            vocabulary=5,
            channels=3,
            classes=2,
            ladder=(1, 2),
            l2_norm=l2_norm,
            shared_adaln=shared,
        )
    parameters = dict(model.named_parameters())
    for kind, group in zip(expected["order_of_groups"], groups(model, 0.5), strict=True):
        names = var_keys.MODEL.publish({name: parameters[name] for name in group["names"]})
        assert sorted(names) == sorted(expected[kind]), variant
        assert group["weight_decay"] == (0.5 if kind == "decay" else 0)


def check_transform(case: Case) -> None:
    size, enlarge = case.config["final_reso"], case.config["mid_reso"]
    image = Image.fromarray(case.inputs["img_u8"].numpy())
    case.expect("x", centre_crop(size, enlarge)(image) * 2 - 1)
