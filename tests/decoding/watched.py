"""Decodings that are watched, and models that are easy to guess."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests import tiny
from var.cache.base import Cache, CacheKind
from var.condition import Condition
from var.decoding.base import Decoding, Turn
from var.decoding.loop import decide
from var.heads.base import Prediction
from var.models.raster import Raster
from var.random import Rng
from var.sampling import Sampling
from var.tokenizers.tokenizer import Canvas


class Watched:
    """A decoding that notes what it settles.

    Args:
        inner: who decides.

    Attributes:
        tokens: (B, L) of each group that the last run has decided.
        turns: that it took.
    """

    def __init__(self, inner: Decoding) -> None:
        self.inner, self.tokens, self.turns = inner, list[Tensor](), 0

    @property
    def caches(self) -> Sequence[Cache]:
        return self.inner.caches

    def begin(self, kind: CacheKind | None = None) -> None:
        self.tokens, self.turns = [], 0
        self.inner.begin(kind)

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        return self.inner.propose(canvas, rng)

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        settled = self.inner.settle(prediction, rng)
        self.tokens, self.turns = self.tokens + settled, self.turns + 1
        return settled


class Images(NamedTuple):
    """What a run has decided.

    Attributes:
        ids: (B, N) tokens, as they were settled.
        turns: that it took.
        canvas: the last one.
    """

    ids: Tensor
    turns: int
    canvas: Any


def images(
    decoding: Any,
    rng: Rng | None = None,
    *,
    rows: int = 2,
    sampling: Sampling | None = None,
    canvas: Canvas | None = None,
    cache: CacheKind | None = None,
    labels: Sequence[int] | None = None,
) -> Images:
    """Decide images by the model of a decoding, of classes 0, 1, ... and none unless labelled."""
    model = decoding.model
    made = tiny.flat() if isinstance(model, Raster) else tiny.tokenizer(len(model.schedule))
    numbers = torch.arange(rows) % (tiny.CLASSES + 1) if labels is None else torch.tensor(labels)
    watched, condition = Watched(decoding), Condition(numbers)
    *_, last = decide(
        made,
        model.schedule,
        condition,
        watched,
        Sampling(guidance=(1.0, 1.0)) if sampling is None else sampling,
        rng,
        canvas=canvas,
        cache=cache,
    )
    return Images(torch.cat(watched.tokens, dim=1), watched.turns, last)


@torch.no_grad()
def easy(grid: int | tuple[int, int] = 5, loudness: float = 1e-2, **changes: Any) -> Raster:
    """Return a raster model to which what was decided before matters little."""
    model = tiny.raster(grid=grid, **changes)
    model.codes.weight *= loudness
    return model
