"""The one loop in which images are decided, whatever the model, head, canvas, cache or decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from var.cache.base import CacheKind
from var.condition import Condition
from var.decoding.base import Decoding
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Schedule
from var.tokenizers.tokenizer import Canvas, Tokenizer


# Not `inference_mode`: whoever gets a canvas may decode it, or train on it, outside the loop.
@torch.no_grad()
def decide(
    tokenizer: Tokenizer,
    schedule: Schedule,
    condition: Condition,
    decoding: Decoding,
    sampling: Sampling,
    rng: Rng | None = None,
    *,
    canvas: Canvas | None = None,
    cache: CacheKind | None = None,
) -> Iterator[Canvas]:
    """Decide the groups of the schedule in order; yield the canvas after each turn.

    Args:
        tokenizer: provides the blank canvas.
        schedule: the groups to decide.
        condition: what each image shall show.
        decoding: who predicts, and what is kept.
        sampling: guidance and filters.
        rng: one stream per image; without, the most likely tokens are taken.
        canvas: begin here instead of with a blank: to edit, or to go on.
        cache: kind of the decoding's caches; None: its own choice.
    """
    canvas = tokenizer.blank(len(condition), schedule) if canvas is None else canvas
    decoding.begin(cache)
    if condition.empty:  # the null half would be the same
        sampling = replace(sampling, guidance=(1.0, 1.0))
    spread = lru_cache(condition.spread)  # texts are long: not at every turn
    while canvas.done < len(schedule):
        turn = decoding.propose(canvas, rng)
        # Feed whatever this model has not seen: one group, or all of them if it is new here.
        span = schedule[turn.cache.seen : turn.draft.done + 1]
        fresh = span.tail(canvas.done)
        guide = sampling.guide_over(fresh)
        turn.cache.narrow(guide.rows * len(condition))  # guidance may be over
        x = guide.spread(turn.draft.read(span))
        h = turn.model(x, span, spread(guide.rows), turn.cache)
        turn.cache.advance(span)
        prediction = turn.model.head(h[:, -len(fresh) :], fresh, guide)
        prediction = prediction.shaped(sampling.over(fresh))
        canvas = canvas.write(*decoding.settle(prediction, rng))
        turn.cache.rewind(canvas.done)  # forget refuted guesses
        yield canvas


@torch.no_grad()
def generate(
    tokenizer: Tokenizer,
    schedule: Schedule,
    condition: Condition,
    decoding: Decoding,
    sampling: Sampling,
    rng: Rng | None = None,
    *,
    canvas: Canvas | None = None,
    cache: CacheKind | None = None,
) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1]; the arguments are those of `decide`."""
    canvas = tokenizer.blank(len(condition), schedule) if canvas is None else canvas
    for latest in decide(
        tokenizer, schedule, condition, decoding, sampling, rng, canvas=canvas, cache=cache
    ):
        canvas = latest
    return tokenizer.decode(canvas)
