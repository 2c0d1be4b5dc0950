"""A text in front of an image: features of a text encoder, and how they are seen (LlamaGen, 3.2).

Positions of the text have no angle: their keys and queries are zero, so that everybody who sees
them gives all of them the same score, 0, and gets the mean of their values. That is how they are
computed here, without any scores; and all that the image needs of a text of n features is one key,
zero, whose score is log n, and one value, the mean. The text takes one place in a cache.

Letters: R rows, T features of a text, E their channels, N heads, d channels of a head, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.condition import Condition
from var.errors import UserError
from var.nn.linear import Linear
from var.nn.rotary import behind


class Prefix(NamedTuple):
    """A text on its way through the blocks.

    Attributes:
        x: (R, T, D) its stream.
        valid: (R, T) float32, 1 where features count, 0 where they do not.
    """

    x: Tensor
    valid: Tensor


class Text(nn.Module):
    """Features of a text encoder to the width of a model, by a perceptron.

    Args:
        channels: of a feature, E.
        length: features of a text, T.
        width: D.
    """

    null: Tensor

    def __init__(self, channels: int, length: int, width: int) -> None:
        super().__init__()
        self.rise = Linear(channels, width, bias=False)
        self.fall = Linear(width, width, bias=False)
        self.register_buffer("null", torch.empty(length, channels))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Draw what stands for no text, which is not trained: N(0, 1 / E)."""
        nn.init.normal_(self.null, std=self.null.shape[1] ** -0.5)

    def forward(self, condition: Condition) -> Prefix:
        """Return the texts as blocks read them, the null text where there is none.

        Raises:
            UserError: there are no features, or of another shape.
        """
        text = condition.text
        if text is None or text.shape[1:] != self.null.shape:
            got = "no text" if text is None else f"features {tuple(text.shape[1:])}"
            raise UserError(
                f"this model reads texts of {tuple(self.null.shape)}, got {got}: give features "
                "by its text encoder, in Python, as var.Condition.of_text(features, valid)"
            )
        none = (condition.labels < 0)[:, None, None]
        text = torch.where(none, self.null, text).to(self.rise.weight.dtype)
        x = self.fall(F.gelu(self.rise(text), approximate="tanh"))
        return Prefix(x, shares(condition, len(self.null)))


def shares(condition: Condition, length: int) -> Tensor:
    """Return which features count, (R, T) float32: 1 or 0."""
    if condition.valid is None:
        return torch.ones(len(condition), length, device=condition.labels.device)
    return condition.valid.float()


def means(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each feature sees, (R, T, N d), and what the image sees of all, (R, N, 1, d).

    A feature sees the valid ones up to itself, and itself.

    Args:
        values: (R, N, T, d).
        valid: (R, T).
    """
    weight = valid[:, None, :, None]
    own = values.float()
    sums, count = (own * weight).cumsum(dim=2), weight.cumsum(dim=2)
    seen = (sums + own * (1 - weight)) / (count + 1 - weight)
    whole = sums[:, :, -1:] / count[:, :, -1:].clamp(min=1)
    return rearrange(seen.to(values), "R N T d -> R T (N d)"), whole.to(values)


def scores(
    valid: Tensor, queries: int, keys: int, dtype: torch.dtype, back: Tensor | None = None
) -> Tensor:
    """Return what is added to scores of positions, (R, 1, L, S).

    That of the first key, which stands for the text, is the logarithm of its length; those ahead of
    a position are -inf.

    Args:
        valid: (R, T).
        queries: L.
        keys: S, the text's own included.
        dtype: of the result.
        back: (L, S) bool, which keys are not ahead; None: the positions are the last ones.
    """
    if back is None:
        back = behind(queries, keys, valid.device)
    exact = valid.sum(dim=1).log()[:, None, None]
    near = exact.to(dtype)
    # What rounding adds to one key, 1.5 % of its weight in bfloat16, is added to the others too.
    other = (near.to(exact) - exact).nan_to_num(0)[..., None].to(dtype)
    bias = other.expand(-1, 1, queries, keys).masked_fill(~back, -torch.inf)
    # Whoever sees nothing else, the text itself, shall not see nothing at all.
    late = 1 if keys == queries else 0
    bias[:, :, late:, 0] = near
    return bias
