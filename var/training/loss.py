"""The one training loss of all generators: teacher forcing on the canvas that sampling uses."""

from __future__ import annotations

import torch
from torch import Tensor

from var.models.base import Backbone
from var.sampling import Condition
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer


def loss(
    model: Backbone,
    tokenizer: Tokenizer,
    schedule: Schedule,
    image: Tensor,
    condition: Condition,
) -> Tensor:
    """Return the loss of each token (B, L) of images (B, 3, H, W) in [0, 1].

    The canvas is told the truth and read as in sampling. The tokenizer gets no gradient, and works
    in its own precision: ids must not depend on that of the generator (VAR, section 5).
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        tokens, span = tokenizer.encode(image, schedule), schedule[:]
        x = tokenizer.blank(len(image), schedule).write(*tokens).read(span)
    return model.head.loss(model(x, span, condition), torch.cat(tokens, dim=1), span)


def progressive_weights(schedule: Schedule, newest: int, factor: float) -> Tensor:
    """Return the weights (L,) of the tokens of groups 0..newest in progressive training.

    Every token weighs 1 / L of the full schedule, those of the newest group `factor` of that
    (VAR, section 5); the sum over tokens of weight times loss is the loss of an image.
    """
    span = schedule[: newest + 1]
    weights = torch.full((len(span),), 1 / schedule.starts[-1])
    weights[span.levels() == newest] *= factor
    return weights
