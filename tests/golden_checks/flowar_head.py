"""Checks of FlowAR's head: velocities, a single block, and what has no weights."""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_checks.case import Case
from tests.golden_checks.var_transformer import watch
from var.heads.flow_net import CrossBlock, FlowNet, Known, sinusoid, time_index
from var.heads.ode import solver
from var.nn.rotary import rotate, turn
from var.schedule import Schedule, Span
from var.tokenizers.resample import Resample, shrunk


def square(positions: int) -> Span:
    """Return the span of a single scale of so many positions."""
    return Schedule.scales([math.isqrt(positions)])[:]


@torch.no_grad()
def check_head(case: Case) -> None:
    net: FlowNet = case.build().model
    for tag in case.config["tags"]:
        t, x, z = (case.inputs[f"{tag}/{name}"] for name in ("t", "x_t", "z"))
        seen: dict[str, Tensor] = {}
        handles = [
            watch(net.inlet, seen, "input_proj"),
            watch(net.time, seen, "time_embed"),
            watch(net.condition, seen, "cond_embed"),
        ]
        for i, block in enumerate(net.blocks):
            handles.append(watch(block, seen, f"res_blocks.{i}"))
            handles.append(watch(block.attention.proj, seen, f"res_blocks.{i}.attn"))
            if isinstance(block, CrossBlock):
                handles.append(watch(block.cross.proj, seen, f"res_blocks.{i}.crossattn"))
        seen["v"] = net(x, net.clock(t[:, None]), net.meet(z, square(x.shape[1])))
        seen["time_embed"] = seen["time_embed"][:, 0]
        seen["t_index"] = time_index(t)
        for name, tensor in seen.items():
            if f"{tag}/{name}" in case.outputs:
                case.expect(f"{tag}/{name}", tensor)
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_block(case: Case) -> None:
    block = case.build().model
    x, t, c, z = (case.inputs[name] for name in ("x", "t", "c", "condition"))
    span = square(x.shape[1])
    angles = turn(span, x.shape[2] // block.attention.heads, 16.0, x.device)
    known = Known(c, (), angles, span)
    y = block(x, F.silu(t + c), block.at(t), block.meet(z, angles), known)
    case.expect("y", y)


@torch.no_grad()
def check_plumbing(case: Case) -> None:
    model = case.config["model"]
    schedule, latent = Schedule.scales(model["scale"]), case.inputs["latents"]
    mask = schedule[:].mask()
    assert mask is not None
    case.expect("mask_row_len", mask.sum(dim=1, dtype=torch.int32))
    targets = shrunk(latent, schedule)
    case.expect("targets", torch.cat(targets, dim=1))
    first = latent.new_zeros(len(latent), schedule.sizes[0], latent.shape[1])
    blank = Resample(schedule, 0, torch.zeros_like(latent), (first,), lambda tokens: tokens)
    canvas = blank.write(*targets)
    case.expect("unpatchify", canvas.latent)
    case.expect("x_input", canvas.read(schedule[1:]))
    check_sinusoid(case)
    check_rotation(case)
    check_grids(case)


def check_sinusoid(case: Case) -> None:
    index, expected = case.inputs["t_int"], case.outputs["time_sinusoid"]
    waves = sinusoid(index, 256)
    # Processors differ in the last bit of float32 exponentials, and so of frequencies; angles are
    # up to a thousand of them. Where no more than that lies between the two, they are the same.
    frequency = 10000 ** (-torch.arange(128) / 128)
    bit = (index[:, None] * frequency * 2**-23).repeat(1, 2)
    case.expect("time_sinusoid", torch.where((waves - expected).abs() <= bit, expected, waves))


def check_rotation(case: Case) -> None:
    for side in case.config["rope_sides"]:
        q = case.inputs[f"q_{side}"]
        case.expect(f"rope_q_{side}", rotate(q, turn(square(side**2), q.shape[-1], 16.0, q.device)))
    channels = 2 * case.config["rope_half_dim"]
    # One cell to the right of the first, on a grid on which that is one unit.
    cos, sin = turn(Schedule.scales([(1, 2)])[:], channels, 2.0, torch.device("cpu"))
    frequency = torch.atan2(sin[1], cos[1])[channels // 4 :]
    case.expect("rope_freqs", frequency)


def check_grids(case: Case) -> None:
    for steps in case.config["num_steps"]:
        looks = solver("published", steps).looks
        case.expect(f"t_grid_{steps}", looks.float())
        case.expect(f"t_index_{steps}", time_index(looks))
    for name in case.outputs:
        if found := re.fullmatch(r"guided_(\d+)_([\d.]+)", name):
            looks = solver("published", int(found[1])).looks
            case.expect(name, ((looks >= 0) & (looks <= float(found[2]))).float())
