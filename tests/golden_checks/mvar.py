"""Checks of M-VAR, by kind of case. How its numbers map to our pieces: see `var.systems.mvar`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.golden_checks.case import Case, Excuse
from tests.golden_checks.var_transformer import (
    expect_turns,
    plain_logits,
    run,
    settings,
    watch,
    with_first,
)
from var.condition import Condition
from var.nn.mamba import Mamba2, State
from var.published import Parts
from var.tokenizers.tokenizer import Canvas

NOT_APPLICABLE: tuple[Excuse, ...] = ()


@torch.no_grad()
def check_mixer(case: Case) -> None:
    mixer, u = case.build().model, case.inputs["u"]
    assert isinstance(mixer, Mamba2)
    seen: dict[str, Tensor] = {}
    watch(mixer.in_proj, seen, "zxbcdt")
    watch(mixer.out_proj, seen, "normed", entering=True)
    seen["y"], _ = mixer(u)
    z, xbc, steps = seen["zxbcdt"].split(mixer.sizes, dim=-1)
    seen["conv"], _ = mixer.convolve(xbc, None)
    seen["dt"] = nn.functional.softplus(steps + mixer.dt_bias)
    seen["ssm"], _ = mixer.recur(seen["conv"], seen["dt"], None)
    case.expect("normed", mixer.gated(seen["ssm"], z))
    for name, tensor in seen.items():
        case.expect(name, tensor)
    for place, name in case.numbered("ssm_state"):
        y, state = mixer(u[:, :place])
        case.expect(name, state.ssm)
        case.expect(f"conv_tail_{place}", state.tail)
        if place < u.shape[1]:
            recorded = State(case.outputs[f"conv_tail_{place}"], case.outputs[name])
            rest, _ = mixer(u[:, place:], recorded)
            case.expect("y", torch.cat([y, rest], dim=1))


@torch.no_grad()
def check_teacher_forcing(case: Case) -> None:
    """In both modes: the original keeps scales apart in training only."""
    parts = case.build()
    model, schedule = parts.model, parts.schedule
    seen: dict[str, Tensor] = {}
    first = model.blocks[0]
    watch(first, seen, "x0", entering=True)
    watch(first.attention.proj, seen, "attn_out_0")
    watch(first.mamba, seen, "mamba_in_0", entering=True)
    first.mamba.register_forward_hook(lambda _, __, out: seen.update(mamba_out_0=out[0]))
    watch(first.mlp, seen, "ffn_out_0")
    for k, name in case.numbered("block"):
        watch(model.blocks[k], seen, name)
    split = first.attention.split
    first.attention.split = lambda x: seen.update(attn_in_0=x) or split(x)
    condition = Condition(case.inputs["label"]).dropped(
        case.inputs["drop_uniform"], case.config["mvar"]["cond_drop_rate"]
    )
    span, x = schedule[:], with_first(case.inputs["x"], schedule)
    for training in (True, False):
        seen.clear()
        h = model.train(training)(x, span, condition)
        seen |= {"head_norm": h, "logits": plain_logits(model, h, span)}
        for name, tensor in seen.items():
            case.expect(name, tensor)


def check_greedy(case: Case) -> None:
    parts = case.build()
    observed, canvases = run(parts, case.inputs["label"], settings(case))
    expect_turns(case, "raw_logits", observed.raw)
    expect_turns(case, "cfg_logits", observed.guided)
    expect_turns(case, "idx", observed.tokens)
    expect_turns(case, "fhat", [canvas.latent for canvas in canvases])
    case.expect("img", parts.tokenizer.decode(canvases[-1]))
    case.expect("tf_train_logits", forced(case, parts, canvases[-1]))


@torch.no_grad()
def forced(case: Case, parts: Parts, canvas: Canvas) -> Tensor:
    """Return the logits of both halves (2B, L, V) on the tokens of a canvas, in training mode."""
    span, labels = parts.schedule[:], case.inputs["label"]
    condition = Condition(torch.cat([labels, torch.full_like(labels, -1)]))
    x = canvas.read(span).repeat(2, 1, 1)
    return plain_logits(parts.model, parts.model.train()(x, span, condition), span)


CHECKS: dict[str, Callable[[Case], None]] = {
    "mamba2_layer": check_mixer,
    "mvar_greedy": check_greedy,
    "mvar_tf": check_teacher_forcing,
}
