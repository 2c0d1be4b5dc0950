"""The gated perceptron of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from var.nn.linear import Linear
from var.nn.recompute import kept_by_hand, late


class GatedMlp(nn.Module):
    """`fall(act(gate(x)) * rise(x))`, with the exact GELU (FlowAR, section 3) or with SiLU.

    Args:
        width: of input and output.
        hidden: in between.
        silu: SiLU and no biases (LlamaGen, section 3.2) instead of GELU and biases.
        drop: dropout after the last layer, 0..1.
    """

    def __init__(self, width: int, hidden: int, *, silu: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.gate = Linear(width, hidden, bias=not silu)
        self.rise = Linear(width, hidden, bias=not silu)
        self.fall = Linear(hidden, width, bias=not silu)
        self.act = F.silu if silu else F.gelu
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, L, D) to (R, L, D)."""
        gate, rise = self.gate(x), self.rise(x)
        if kept_by_hand():  # what they make together is as large as each of them
            both = (gate.flatten(0, -2), rise.flatten(0, -2))
            return self.drop(late(self._fallen, *both, width=gate.shape[-1]).view(x.shape))
        return self.drop(self._fallen(gate, rise))

    def _fallen(self, gate: Tensor, rise: Tensor) -> Tensor:
        return self.fall(self.act(gate) * rise)


def gated_hidden(width: int, ratio: float) -> int:
    """Return the hidden width with as many weights as an ungated perceptron of that ratio."""
    return int(width * ratio * 2 / 3)
