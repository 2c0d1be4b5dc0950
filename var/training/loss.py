"""The one training loss of all generators: teacher forcing on the canvas that sampling uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from var.condition import Condition
from var.models.base import Backbone
from var.random import Rng
from var.schedule import Schedule, Span
from var.tokenizers.tokenizer import Tokenizer


class Lesson(NamedTuple):
    """The truth about some images, as a generator is told it.

    Attributes:
        span: the groups it is about.
        x: (B, L, C) what the canvas shows of them.
        tokens: (B, L) or (B, L, C) what is to be predicted.
    """

    span: Span
    x: Tensor
    tokens: Tensor


@torch.no_grad()
def lesson(
    tokenizer: Tokenizer,
    schedule: Schedule,
    image: Tensor,
    rng: Rng,
    groups: int | None = None,
) -> Lesson:
    """Return the truth about the first `groups` groups (None: all) of images (B, 3, H, W).

    The canvas is told it and read as in sampling. The tokenizer works in its own precision: ids
    must not depend on that of the generator (VAR, section 5).
    """
    with torch.autocast(image.device.type, enabled=False):
        tokens, span = tokenizer.encode(image, schedule, rng)[:groups], schedule[:groups]
        x = tokenizer.blank(len(image), schedule).write(*tokens).read(span)
    return Lesson(span, x, torch.cat(tokens, dim=1))


def loss(
    model: Backbone,
    tokenizer: Tokenizer,
    schedule: Schedule,
    image: Tensor,
    condition: Condition,
    rng: Rng,
    groups: int | None = None,
) -> Tensor:
    """Return the loss of each token (B, L) of images (B, 3, H, W) in [0, 1].

    What is drawn, by the tokenizer first and then by the head, comes from the images' streams.

    With `groups` it is that of the first so many groups, and no others are read.
    """
    span, x, tokens = lesson(tokenizer, schedule, image, rng, groups)
    return model.head.loss(model(x, span, condition), tokens, span, rng)


def progressive_weights(schedule: Schedule, newest: int, factor: float) -> Tensor:
    """Return the weights (L,) of the tokens of groups 0..newest in progressive training.

    Every token weighs 1 / L of the full schedule, those of the newest group `factor` of that
    (VAR, section 5); the sum over tokens of weight times loss is the loss of an image.
    """
    span = schedule[: newest + 1]
    weights = torch.full((len(span),), 1 / schedule.starts[-1])
    weights[span.levels() == newest] *= factor
    return weights
