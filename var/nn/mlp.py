"""The two-layer perceptron of a transformer block, and stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from var.nn.linear import Linear


class Mlp(nn.Module):
    """`fall(gelu(rise(x)))` with the tanh approximation of GELU (VAR, section 3.3).

    Args:
        width: of input and output.
        hidden: in between.
        drop: dropout after the second layer, 0..1.
    """

    def __init__(self, width: int, hidden: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.rise = Linear(width, hidden)
        self.fall = Linear(hidden, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, L, D) to (R, L, D)."""
        return self.drop(self.fall(self.rise.product(x, self.rise.bias, gelu=True)))


def drop_path(rate: float) -> nn.Module:
    """Return a layer that drops a residual branch of a row with probability `rate` in training."""
    if not rate:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, mode="row")
