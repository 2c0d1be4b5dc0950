"""Gradient checkpointing: what a block computed on its way is computed again, not kept.

Kept is what goes into a block; all else is computed a second time when gradients need it, which
costs a third of a step's time and saves most of the memory that activations take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# CPUs are fastest at pieces that their caches hold; GPUs at those that are worth a launch.
_PIECE = {"cpu": 1 << 24, "cuda": 1 << 27}


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let modules keep nothing but their inputs while they are trained.

    Losses and gradients stay what they are, bit for bit, dropout included. It goes before or after
    `compile_methods`, and before modules are distributed.

    Args:
        blocks: the modules, such as `Backbone.blocks`.
    """
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)


def kept_by_hand() -> bool:
    """Return whether gradients may be asked for, and no compiler decides what is kept for them."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def late(
    function: Callable[..., Tensor], *rows: Tensor, width: int, most: int | None = None
) -> Tensor:
    """Return `function(*rows)`, of which no more is kept for gradients than the arguments.

    What the gradients need is computed again, up to the function's last product, piece by piece.

    Args:
        function: maps tensors (n, ...) to one of as many rows, each on its own.
        rows: its arguments.
        width: how many numbers it makes of a row on the way.
        most: bytes of a piece in float32; None: what suits the device.
    """
    size = max(1, (most or _PIECE.get(rows[0].device.type, 1 << 24)) // (4 * width))
    pieces = zip(*(each.split(size) for each in rows), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
