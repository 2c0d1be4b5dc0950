"""Checks of M-VAR, by kind of case. How its numbers map to our pieces: see `var.systems.mvar`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.golden_checks.case import Case, Excuse
from tests.golden_checks.var_transformer import (
    both_halves,
    expect_images,
    plain_logits,
    watch,
    with_first,
)
from var.condition import Condition
from var.nn.mamba import Mamba2, State

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
    canvas = expect_images(case, parts)
    parts.model.train()
    case.expect("tf_train_logits", torch.cat(both_halves(case, parts, canvas), dim=1))


CHECKS: dict[str, Callable[[Case], None]] = {
    "mamba2_layer": check_mixer,
    "mvar_greedy": check_greedy,
    "mvar_tf": check_teacher_forcing,
}
