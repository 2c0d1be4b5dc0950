"""Parameter groups, learning-rate and weight-decay schedules (VAR, section 5).

Schedules are functions of the step alone: nothing to save, nothing to get out of step on resuming.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def decays(module: nn.Module, name: str) -> bool:
    """Tell whether the parameter `name` of `module` itself is subject to weight decay.

    Vectors and biases are not, nor what the module's class lists in `no_decay` (positions, gains,
    codebooks).
    """
    parameter = module.get_parameter(name)
    return parameter.ndim > 1 and name != "bias" and name not in getattr(module, "no_decay", ())


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters that are trained in two groups: without weight decay, with it."""
    split: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    names: dict[bool, list[str]] = {False: [], True: []}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                split[decays(module, name)].append(parameter)
                names[decays(module, name)].append(f"{prefix}.{name}" if prefix else name)
    return [
        {"params": split[decay], "names": names[decay], "weight_decay": weight_decay * decay}
        for decay in (False, True)
        if split[decay]
    ]


def _plateau(kind: str) -> float:
    return {"lin0": 0.05, "lin00": 0.0, "lin": 0.15, "exp": 0.15}[kind]


def published_rate(
    step: int,
    *,
    kind: str,
    peak: float,
    warmup_steps: float,
    total_steps: int,
    warmup_start: float = 0.005,
    final: float = 0.01,
) -> float:
    """Return the learning rate of a step, 0 <= step < total_steps.

    Args:
        step: optimiser steps taken so far.
        kind: shape after the warm-up: `cos`; `lin0`, `lin`, `lin00`: constant over the first 5%,
            15%, 0% of what remains, then linear; `exp`: 15%, then exponential; `lin<T>`, e.g.
            `lin0.8`: at half the linear slope up to T, then straight down to the end.
        peak: rate after the warm-up.
        warmup_steps: steps of linear growth from `warmup_start * peak`.
        total_steps: of the run.
        warmup_start, final: first and last rate, as a share of the peak.
    """
    if step < warmup_steps:
        return peak * (warmup_start + (1 - warmup_start) * step / warmup_steps)
    done = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1e-9)
    return peak * _shape(kind, min(done, 1.0), final)


def _shape(kind: str, done: float, final: float) -> float:
    if kind == "cos":
        return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * done))
    if kind in ("lin0", "lin", "lin00", "exp"):
        start = _plateau(kind)
        left = 1 - max(0.0, done - start) / (1 - start)
        return final ** (1 - left) if kind == "exp" else final + (1 - final) * left
    if kind.startswith("lin"):
        return _two_slopes(float(kind[3:]), done, final)
    raise ValueError(
        f"unknown learning-rate schedule {kind!r}: use cos, lin, lin0, lin00, lin<T>, exp"
    )


def _two_slopes(turn: float, done: float, final: float) -> float:
    middle = final + (1 - final) * (1 - turn / 2)
    if done < turn:
        return 1 + (middle - 1) * done / turn
    return final + (middle - final) * (1 - done) / (1 - turn)


def cosine_decay(step: int, total_steps: int, start: float, end: float) -> float:
    """Return the value at `step` of a half cosine from `start` to `end` (weight decay)."""
    done = step / max(1, total_steps - 1)
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * done))
