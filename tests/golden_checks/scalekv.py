"""Checks of ScaleKV, by kind of case: `var.cache.scale` and its parts on recorded q, k and v.

The published code decides while it runs how much a layer may hold: everything, until a base
capacity is exceeded for the first time, from then on a number from a table. `Rule` is that
decision; for us it is a `Budget`, known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from tests.golden_checks.case import Case, Excuse
from var.cache.scale import Scale
from var.cache.scale_budget import Budget
from var.cache.scale_select import Selection, observers
from var.schedule import Grid, Schedule

CPU = torch.device("cpu")
SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)  # of the published code, whatever the image


class Rule:
    """How much one layer may hold, as the published code has it (section 4, steps 2 and 3)."""

    def __init__(self, config: Mapping[str, Any], layer: int) -> None:
        self.config, self.layer = config, layer
        self.reached = bool(config.get("has_reached_base", False))

    def capacity(self, scale: int, length: int) -> int:
        """Return how many of `length` positions may stay after a scale."""
        base = self.config["base_capacity"]
        if length <= base and not self.reached:
            return length
        self.reached = scale < len(SIDES) - 1
        row = self.config["cache_sizes"][min(scale, 11) + 2]
        return min(length, row[self.layer] if self.layer < len(row) else base)


def selection(config: Mapping[str, Any]) -> Selection:
    return Selection(**settings(config))


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    pool = {"maxpool": "max", "avgpool": "mean"}[config["pooling"]]
    return {
        "window": config["window_size"],
        "pool": pool,
        "width": config["kernel_size"],
        "score": "logits",
    }


def square(tokens: int) -> Grid | None:
    """Return the grid that the published code sees in a number of tokens."""
    side = isqrt(tokens)
    return (side, side) if side * side == tokens else None


def seen_as(scale: int, length: int) -> Grid | None:
    """Return the grid that it takes a scale for, at the end of a cache of that length."""
    return square(min(length, SIDES[scale] ** 2))


def check_window(case: Case) -> None:
    for name, call in case.config["cases"].items():
        grid = square(call["key_len"] - call["scale_start"])
        found = observers(grid, call["key_len"], call["window_size"], CPU)
        case.expect(name, found.int())


def check_update(case: Case) -> None:
    for name, config in case.config["cases"].items():
        q, k, v = (case.inputs[f"{name}/{part}"] for part in "qkv")
        q, scale, length = q * q.shape[-1] ** -0.5, config["scale_ind"], k.shape[2]
        rule = Rule(config, config["layer_idx"])
        capacity = rule.capacity(scale, length)
        grid = seen_as(scale, length)
        positions = torch.arange(length, dtype=k.dtype)[:, None].expand_as(k)
        keys, values = compressed(config, q, k, v, capacity, grid)
        _, kept = compressed(config, q, k, positions, capacity, grid)
        case.expect(f"{name}/kept", kept[..., 0].to(torch.int16))
        case.expect(f"{name}/k", keys)
        case.expect(f"{name}/v", values)
        case.expect(f"{name}/has_reached_base_after", torch.tensor(int(rule.reached)))


def compressed(
    config: Mapping[str, Any], q: Tensor, k: Tensor, v: Tensor, capacity: int, grid: Grid | None
) -> tuple[Tensor, Tensor]:
    """Return what a memory holds that has read the past, then the group that q belongs to."""
    past, own = k.shape[2] - q.shape[2], q.shape[2]
    sizes = (past, own, 1) if past else (own, 1)
    schedule = Schedule.scales([(1, size) for size in sizes])
    room = ((0,), (past,), (capacity,)) if past else ((0,), (capacity,))
    cache = Scale(
        1,
        budget=Budget(schedule, room),
        grids=[grid] * len(sizes),
        **settings(config),
    )
    memory = cache.layers[0]
    if past:
        start = q.new_zeros(*q.shape[:2], past, q.shape[-1])
        memory.extend(start, k[:, :, :past], v[:, :, :past], schedule[:1])
    everything = memory.extend(q, k[:, :, past:], v[:, :, past:], schedule[-2:-1])
    torch.testing.assert_close(everything, (k, v), rtol=0, atol=0)
    keys, values = memory.tensors()
    return keys, values


def check_generate(case: Case) -> None:
    config = case.config["scalekv"]
    grids = [(h, w) for _, h, w in case.config["generate"]["scale_schedule"]]
    layers = case.outputs["cache_len_after_scale"].shape[1]
    before = lengths(case, config, grids, layers)
    for name in [name for name in case.outputs if name.startswith("kept_")]:
        scale, layer = (int(part.lstrip("slayer")) for part in name.split("_")[1:])
        length = int(before[scale, layer])
        window = observers(seen_as(scale, length), length, config["window_size"], CPU)
        recorded = case.outputs[name].long()
        assert torch.isin(window, recorded).all(), f"out/{name} lacks the window"
        if layer == 1 and scale == config.get("trace_scale"):
            replay(case, name, config, scale)


def lengths(case: Case, config: Mapping[str, Any], grids: list[Grid], layers: int) -> Tensor:
    """Compare what our caches hold after each scale; return what they held before dropping."""
    schedule = Schedule.scales([*grids, 1])  # ours keeps nothing after the last: there is one more
    rules, held = [Rule(config, layer) for layer in range(layers)], [0] * layers
    before, rows = [], [(0,) * layers]
    for scale, size in enumerate(schedule.sizes[:-1]):
        before.append([number + size for number in held])
        held = [rule.capacity(scale, n) for rule, n in zip(rules, before[-1], strict=True)]
        rows.append(tuple(held))
    seen = [*(seen_as(scale, max(row)) for scale, row in enumerate(before)), None]
    budget = Budget(schedule, tuple(rows))
    cache, found = Scale(layers, budget=budget, grids=seen, **settings(config)), []
    for group, size in enumerate(schedule.sizes[:-1]):
        x = torch.randn(1, 1, size, 1, generator=torch.Generator().manual_seed(group))
        for memory in cache.layers:
            memory.extend(x, x, x, schedule[group : group + 1])
        found.append([memory.tensors()[0].shape[2] for memory in cache.layers])
    case.expect("cache_len_after_scale", torch.tensor(found, dtype=torch.int32))
    return torch.tensor(before)


def replay(case: Case, name: str, config: Mapping[str, Any], scale: int) -> None:
    """Compare the positions kept of recorded q and k; of equal scores any may be kept."""
    q, k = case.outputs["trace_q"], case.outputs["trace_k"]
    q, recorded, length = q * q.shape[-1] ** -0.5, case.outputs[name].long(), k.shape[2]
    grid, choice = seen_as(scale, length), selection(config)
    kept = choice.keep(q, k, recorded.shape[2], grid)
    scores = choice.scores(q, k, observers(grid, length, choice.window, CPU))
    ours, theirs = (scores.gather(2, places).sort().values for places in (kept, recorded))
    torch.testing.assert_close(ours, theirs, rtol=case.about["rtol"], atol=1e-5)
    assert (kept.diff() > 0).all()
    case.compared.add(name)


def untraced(scale: int, layer: int, case: Case) -> bool:
    return layer != 1 or scale != case.config["scalekv"].get("trace_scale")


CHECKS: dict[str, Callable[[Case], None]] = {
    "generate_": check_generate,
    "update_kv": check_update,
    "window_indices": check_window,
}

HOST = "needs Infinity as a host"
LAYERS, SCALES = range(40), range(len(SIDES))

NOT_APPLICABLE = (
    *(
        Excuse("generate_", output, HOST)
        for scale in SCALES
        for output in (f"bits_s{scale}", f"logits_s{scale}", f"next_input_s{scale}")
    ),
    *(Excuse("generate_", f"block{layer}_out_s1", HOST) for layer in LAYERS),
    *(Excuse("generate_", output, HOST) for output in ("cond_BD", "summed_codes")),
    # That they hold our window is checked of all; all of them where q and k were traced.
    *(
        Excuse(
            "generate_", f"kept_s{scale}_layer{layer}", HOST, when=partial(untraced, scale, layer)
        )
        for scale in SCALES
        for layer in LAYERS
    ),
    *(
        Excuse("generate_", f"trace_{part}", "what the check reads: to make it " + HOST)
        for part in "qkv"
    ),
)
