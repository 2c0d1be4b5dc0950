"""Checks of CoDe, by kind of case. How its numbers map to our pieces: see `var.systems.code`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden_checks.case import Case, Excuse
from tests.golden_checks.var_transformer import (
    expect_turns,
    plain_logits,
    recorded_noise,
    with_first,
)
from var.cache.base import CacheKind
from var.condition import Condition
from var.decoding.base import Decoding, Turn
from var.decoding.collaborative import Collaborative
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.heads.categorical import CategoricalPrediction
from var.models.var import VAR
from var.published import Parts
from var.random import Rng
from var.sampling import Guide, Sampling
from var.tokenizers.canvas import Framed, hole_mask
from var.tokenizers.tokenizer import Canvas
from var.training.distil import distance


class Watched:
    """A decoding that keeps what it saw, one entry a turn.

    Args:
        decoding: of which to keep it.
        models: that it lets read.

    Attributes:
        guided: logits after guidance.
        shaped: predictions after the filters.
        tokens: what was drawn.
    """

    def __init__(self, decoding: Decoding, *models: VAR) -> None:
        self.decoding = decoding
        self.guided: list[Tensor] = []
        self.shaped: list[CategoricalPrediction] = []
        self.tokens: list[Tensor] = []
        self.hooks = [model.head.register_forward_hook(self.note) for model in models]

    def note(self, head: nn.Module, args: tuple, prediction: CategoricalPrediction) -> None:
        self.guided.append(prediction.logits)

    def begin(self, kind: CacheKind | None = None) -> None:
        self.decoding.begin(kind)

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        return self.decoding.propose(canvas, rng)

    def settle(self, prediction: CategoricalPrediction, rng: Rng | None) -> list[Tensor]:
        drawn = self.decoding.settle(prediction, rng)
        self.shaped.append(prediction)
        self.tokens += drawn
        return drawn


def settings(call: Mapping[str, Any]) -> Sampling:
    return Sampling(
        guidance=call["cfg"],
        top_k=call["top_k"] if isinstance(call["top_k"], list) else 1,
        top_p=call.get("top_p", 0.0),
        temperature=call.get("temp", 1.0),
        temper_last=True,
    )


def run(
    case: Case, parts: Parts, switch: int, rng: Rng | None = None, canvas: Canvas | None = None
) -> tuple[Watched, list[Canvas]]:
    """Generate; return what was watched, and the canvas after each turn.

    Args:
        switch: scales that the drafter decides; at the last one it works alone.
    """
    models = (parts.model, parts.closer)
    alone = switch == len(parts.schedule)
    watched = Watched(Sequential(parts.model) if alone else Collaborative(*models, switch), *models)
    turns = decide(
        parts.tokenizer,
        parts.schedule,
        Condition(case.inputs["label"]),
        watched,
        settings(case.call),
        rng,
        canvas=canvas,
    )
    canvases = list(turns)
    for hook in watched.hooks:
        hook.remove()
    return watched, canvases


@torch.no_grad()
def prefill(case: Case, parts: Parts, canvas: Canvas, switch: int) -> Tensor:
    """Return the refiner's logits (2 B, L, V) of all scales up to the switch, unguided."""
    span, guide = parts.schedule[: switch + 1], Guide(scale=1, rows=2)
    condition = Condition(case.inputs["label"]).spread(guide.rows)
    h = parts.closer(guide.spread(canvas.read(span)), span, condition)
    return plain_logits(parts.closer, h, span)


def check_greedy(case: Case) -> None:
    parts = case.build()
    for switch in case.call["handover"]:
        watched, canvases = run(case, parts, switch)
        handed, name = canvases[switch - 1], f"n{switch}"
        case.expect(f"{name}_token_hub", handed.read(parts.schedule[1 : switch + 1]))
        case.expect(f"{name}_draft_fhat", handed.latent)
        case.expect(f"{name}_prefill_logits", prefill(case, parts, handed, switch))
        expect_turns(case, f"{name}_cfg_logits", watched.guided)
        expect_turns(case, f"{name}_idx", watched.tokens)
        for k in range(switch, len(parts.schedule)):
            case.expect(f"{name}_fhat_{k}", canvases[k].latent)
        case.expect(f"{name}_img", parts.tokenizer.decode(canvases[-1]))


def check_sampled(case: Case) -> None:
    parts, switch = case.build(), case.call["handover"]
    watched, canvases = run(case, parts, switch, recorded_noise(case, parts))
    expect_turns(case, "probs", [shaped.probs.flatten(0, 1) for shaped in watched.shaped])
    expect_turns(case, "idx", watched.tokens)
    expect_turns(case, "fhat", [canvas.latent for canvas in canvases])
    check_streams(case, parts, canvases[switch - 1], switch)


def check_streams(case: Case, parts: Parts, handed: Canvas, switch: int) -> None:
    """Compare the tokens that the refiner throws away, and all noise, with streams of our own."""
    sampling, sizes, vocabulary = (
        settings(case.call),
        parts.schedule.sizes,
        case.config["vae"]["vocab_size"],
    )
    drafter, refiner = Rng([case.call["g_seed"]]), Rng([case.call["g_seed"]])
    logits = prefill(case, parts, handed, switch).chunk(2)[0].split(sizes[: switch + 1], dim=1)
    predictions = [CategoricalPrediction(group) for group in logits[:switch]]
    drawn = [p.shaped(sampling.at(k)).sample(refiner) for k, p in enumerate(predictions)]
    case.expect("discarded_idx", torch.cat(drawn, dim=1))
    for k, size in enumerate(sizes):
        noise = (drafter if k < switch else refiner).exponential(size, vocabulary)
        torch.testing.assert_close(noise.flatten(0, 1), case.inputs[f"exp_{k}"])


def check_inpainting(case: Case) -> None:
    parts, switch = case.build(), case.call["handover"]
    schedule = parts.schedule
    hole, frame = (hole_mask(case.inputs[name], schedule) for name in ("mask_out", "mask_in"))
    assert torch.equal(frame, 1 - hole)
    source = [case.inputs[f"fhat_gt_{k}"] for k in range(len(schedule))]
    canvas = Framed(parts.tokenizer.blank(1, schedule), source, hole)
    for name, until in {"single": len(schedule), "collab": switch}.items():
        watched, canvases = run(case, parts, until, canvas=canvas)
        expect_turns(case, f"{name}_idx", watched.tokens)
        expect_turns(case, f"{name}_fhat", [canvas.latent for canvas in canvases])


def check_fine_tuning(case: Case) -> None:
    student, teacher = case.inputs["student"], case.inputs["teacher"]
    for i, setting in enumerate(case.config["settings"]):
        each = distance(student, teacher, temperature=setting["T"])
        case.expect(f"kd_rows_{i}", each)
        case.expect_numbers(f"kd_bias_{i}", each.mean())
        labels = case.inputs["labels"] if setting["use_labels"] else None
        alpha = setting["alpha"] if setting["use_labels"] else 1.0
        mixed = distance(student, teacher, labels, temperature=setting["T"], alpha=alpha)
        case.expect_numbers(f"kd_{i}", mixed.mean())
    check_prefix(case)


@torch.no_grad()
def check_prefix(case: Case) -> None:
    parts, length = case.build(), case.config["mask_l"]
    model, schedule = parts.model, parts.schedule
    span = schedule[: schedule.starts.index(length)]
    rate = case.config["refiner"]["cond_drop_rate"]
    condition = Condition(case.inputs["label"]).dropped(case.inputs["drop_uniform"], rate)
    x = with_first(case.inputs["x"], schedule)[:, span.positions]
    case.expect("logits_prefix", plain_logits(model, model(x, span, condition), span))


CHECKS: dict[str, Callable[[Case], None]] = {
    "code_finetune": check_fine_tuning,
    "code_greedy": check_greedy,
    "code_inpaint": check_inpainting,
    "code_sampled": check_sampled,
}

NOT_APPLICABLE: tuple[Excuse, ...] = ()
