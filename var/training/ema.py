"""Exponential moving average of the weights, with a warm-up so that short runs profit too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Ema(AveragedModel):
    """The average of a module's weights; buffers are copied.

    The decay after n updates is `min(decay, (1 + n) / (10 + n))`: early averages forget the
    initial weights quickly.

    Args:
        module: whose weights are averaged.
        decay: share of the old average that is kept, 0..1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        def average(old: Sequence[Tensor], new: Sequence[Tensor], count: Tensor | int) -> None:
            # 1 - min(decay, ...) on the counter's device: no read-back.
            share = 1 - torch.clamp((1 + torch.as_tensor(count)) / (10 + count), max=decay)
            for a, b in zip(old, new, strict=True):
                a.lerp_(b.to(a.dtype), share.to(a))

        super().__init__(module, multi_avg_fn=average)
        self.requires_grad_(False)
