"""Cross-entropy of a map's logits that are never there all at once.

Of a large vocabulary, logits and their gradients are by far the largest tensors of a model. Chunks
of positions are mapped one by one; for gradients a chunk's logits are computed again, which is one
product more than without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from var.nn.recompute import late


def cross_entropy(
    logits: Callable[[Tensor], Tensor],
    h: Tensor,
    ids: Tensor,
    *,
    vocabulary: int,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Return the cross-entropy of each position, (...) float32 at least.

    Args:
        logits: maps features (n, D) to logits (n, V), position by position; called more than once
            for each. It may be any module, adapted, quantised or distributed.
        h: (..., D) features.
        ids: (...) int64 the truth.
        vocabulary: V.
        label_smoothing: 0..1.
        chunk: most bytes of float32 logits at a time; None: what suits the device.
    """

    def loss(h: Tensor, ids: Tensor) -> Tensor:
        z = logits(h)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return F.cross_entropy(z, ids, reduction="none", label_smoothing=label_smoothing)

    each = late(loss, h.flatten(0, -2), ids.flatten(), width=vocabulary, most=chunk)
    return each.view(ids.shape)
