"""Tiny parts with random weights: large enough to go wrong, small enough for a fast test."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from var.models.var import VAR
from var.schedule import Schedule
from var.tokenizers.residual import MultiScaleQuantizer

LADDER = (1, 2, 3, 4)
SCHEDULE = Schedule.scales(LADDER)
VOCABULARY, CHANNELS, CLASSES = 32, 6, 5


def shaken(module: nn.Module, scale: float, seed: int = 0) -> nn.Module:
    """Give a module loud random weights, biases included: a fresh one barely reacts to anything."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * scale)
    return module


def model(**changes: Any) -> VAR:
    """Return a transformer in evaluation mode."""
    settings = {
        "depth": 2,
        "width": 32,
        "heads": 4,
        "vocabulary": VOCABULARY,
        "channels": CHANNELS,
        "classes": CLASSES,
        "ladder": LADDER,
    }
    made = shaken(VAR(**{**settings, **changes}), scale=0.25).eval()
    assert isinstance(made, VAR)
    return made


def tokenizer(scales: int = len(LADDER)) -> MultiScaleQuantizer:
    """Return a quantizer: all of a tokenizer that transformers get to see."""
    made = MultiScaleQuantizer(vocabulary=VOCABULARY, channels=CHANNELS, scales=scales)
    shaken(made, scale=0.4, seed=1)
    assert isinstance(made, MultiScaleQuantizer)
    return made.eval()
