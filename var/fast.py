"""Loaded parts made fast for inference: layout, routes, compilation, CUDA graphs.

Nothing here changes what is computed, but for rounding.
"""

from __future__ import annotations

import torch
from torch import nn

from var.models.replay import Replay
from var.nn.linear import choose_routes


def speed_up(model: nn.Module | None, *, compile: bool = False) -> None:
    """Change a generator, in place, for inference where it is.

    On CPUs that are faster with rearranged weights, those are made as they are needed: they take
    the memory of the weights once more.

    Args:
        model: a backbone, if there is one; again after it was moved.
        compile: compile its steps. On CUDA capture those over a static cache as graphs too: a step
            is compiled the first time that it is taken, captured the second time, and replayed from
            then on, as long as the same decoding is used and keeps its caches (`Collaborative`
            gives them back, and runs without graphs).
    """
    if model is None:
        return
    choose_routes(model, compiled=compile)
    if isinstance(model.forward, Replay):
        model.forward.forget()
    elif compile:
        model.compile()
        model.forward = Replay(model.forward)


def fast_tokenizer(tokenizer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the same tokenizer with a fast decoder in `dtype`, if it has one to offer."""
    fast = getattr(tokenizer, "fast", None)
    return tokenizer if fast is None else fast(dtype)
