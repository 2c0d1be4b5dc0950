"""Modules of a published size with random weights: to measure speed, nothing to be fetched.

Not what training begins with: the weights are large enough for predictions to differ from place to
place, class to class and code to code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from var.nn.attention import CosineScale
from var.nn.mamba import Mamba2
from var.recipe import Spec, build


@torch.no_grad()
def untrained(
    spec: Spec,
    where: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> nn.Module:
    """Return the module of a spec, in evaluation mode, with weights that the seed decides.

    Never holds a second copy: each weight is drawn in float32, on the CPU, whatever the type and
    device it is for.

    Args:
        spec: how to build it.
        where: names the spec in messages.
        device: where the weights go; on the meta device there are none.
        dtype: of the weights.
        seed: of the weights.
    """
    module = build(spec, where).to(dtype).eval()
    if torch.device(device).type == "meta":
        return module
    module.to_empty(device=device)
    rng = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, Mamba2):  # with others its state would stay for ever, or go at once
            part.initialise(rng)
            continue
        for name, weight in part.named_parameters(recurse=False):
            weight.copy_(_drawn(part, name, weight.shape, rng))
        if hasattr(part, "reset_buffers"):
            part.reset_buffers()
    return module.requires_grad_(False)


def _drawn(part: nn.Module, name: str, shape: torch.Size, rng: torch.Generator) -> Tensor:
    if isinstance(part, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return torch.ones(shape) if name == "weight" else torch.zeros(shape)
    if isinstance(part, CosineScale):
        return torch.full(shape, math.log(4))
    noise = torch.randn(shape, generator=rng)
    if len(shape) == 1:
        return noise.mul_(0.02)
    if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
        return noise.div_(math.sqrt(math.prod(shape[1:])))  # keeps the size of what it maps
    return noise  # embeddings, positions, codes
