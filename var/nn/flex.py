"""FlexAttention: all groups of a span in one kernel that skips what is masked, for CUDA.

An alternative in training to `attend`, which takes a kernel for each group: faster where groups are
many and batches small, at the price of a compilation. On other devices there is no such kernel: it
is computed slowly, and not to be trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from var.errors import UserError
from var.nn.attention import attend
from var.schedule import Span


def use_flex(backbone: nn.Module) -> None:
    """Let all that `attend`s to groups in a backbone do so by `flex_attend`.

    Raises:
        UserError: it attends to no groups, or attention weights are to be dropped.
    """
    parts: list[Any] = [part for part in backbone.modules() if hasattr(part, "attend")]
    if not parts:
        raise UserError(
            f"flex attention is for groups of tokens, and {type(backbone).__name__} reads single "
            "ones: use grouped"
        )
    if any(getattr(part, "attention_drop", 0) for part in backbone.modules()):
        raise UserError(
            "flex attention drops no attention weights: use backbone.attention_drop=0, or grouped"
        )
    for part in parts:
        part.attend = flex_attend


def flex_attend(
    q: Tensor, keys: Tensor, values: Tensor, span: Span, *, own: bool = False, drop: float = 0.0
) -> Tensor:
    """Return what `attend` returns, in one go where there are several groups to be trained on."""
    if len(span.sizes) == 1 or not torch.is_grad_enabled():
        return attend(q, keys, values, span, own=own, drop=drop)
    if drop:
        raise ValueError("flex attention drops no attention weights")
    mask = block_mask(span, keys.shape[2] - len(span), own, q.device)
    out = _flex(q.device.type)(q, keys, values, block_mask=mask, scale=1.0)
    return rearrange(out, "R N L d -> R L (N d)")


@lru_cache(maxsize=64)
def block_mask(span: Span, past: int, own: bool, device: torch.device) -> BlockMask:
    """Return who may attend to whom, as `Span.mask` does, in blocks of positions."""
    with torch.inference_mode(False):
        levels = span.levels(device)
        theirs = F.pad(levels, (past, 0), value=-1)

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            if own:
                return levels[query] == theirs[key]
            return levels[query] >= theirs[key]

        length = len(span)
        return create_block_mask(sees, None, None, length, past + length, device=device.type)


@lru_cache(maxsize=2)
def _flex(device: str) -> Callable[..., Any]:
    """Return the function, compiled where it has a kernel."""
    plain = partial(flex_attention, enable_gqa=False)
    return torch.compile(plain, dynamic=False) if device == "cuda" else plain
