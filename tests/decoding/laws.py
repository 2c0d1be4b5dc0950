"""Exact laws of images small enough to enumerate, and whether samples follow them."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny
from tests.decoding.watched import Watched
from var.cache.base import Cache, CacheKind
from var.cache.none import NoMemory
from var.cache.static import Static
from var.condition import Condition
from var.decoding.loop import decide
from var.heads.categorical import Categorical
from var.models.raster import Raster
from var.models.var import VAR
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Schedule, Span
from var.tokenizers.quantizer import Quantizer
from var.tokenizers.residual import MultiScaleQuantizer

LABEL = 1
Model = Any  # Table, Raster or VAR


class Streams(Rng):
    """One generator for all images: a generator each takes longer than what is sampled with it.

    Args:
        seed: of the generator.
        size: number of images.
    """

    def __init__(self, seed: int, size: int) -> None:
        super().__init__([seed])
        self.size = size

    def __len__(self) -> int:
        return self.size

    def exponential(self, *shape: int) -> Tensor:
        return torch.empty(self.size, *shape).exponential_(generator=self.streams[0])

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.size, *shape, generator=self.streams[0])


class Table(nn.Module):
    """A raster model that looks up what to predict by all that was read before: quick, and loud.

    What it has read it keeps in a cache, as any model does.

    Args:
        vocabulary: number of codes V.
        grid: (h, w).
    """

    def __init__(self, vocabulary: int = 4, grid: tuple[int, int] = (2, 3)) -> None:
        super().__init__()
        self.schedule, self.base = Schedule.raster(grid), vocabulary
        rng, length = torch.Generator().manual_seed(0), len(self.schedule)
        # Of texts of 0, 1, ... ids those of so many, row by row; without condition, then with.
        self.starts = torch.tensor([sum(vocabulary**i for i in range(k)) for k in range(length)])
        contexts = sum(vocabulary**k for k in range(length))
        self.logits = 1.2 * torch.randn(2, contexts, vocabulary, generator=rng)
        self.head = Categorical(vocabulary, vocabulary, bias=False)
        nn.init.eye_(self.head.linear.weight)

    def new_cache(self, kind: CacheKind | None = None, groups: int | None = None) -> Cache:
        return (kind or Static)(1, groups)

    def forward(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        ids = x.float()[:, None, :, None]
        memory = NoMemory() if cache is None else cache.layers[0]
        read = memory.extend(ids, ids, ids, span)[0][:, 0, :, 0].long()
        read[:, 0] = 0  # the condition is in its place
        code = torch.zeros_like(read[:, 0])
        found = []
        for k in range(span.stop):
            code = code * self.base + read[:, k]
            found.append(code + self.starts[k])
        context = torch.stack(found[span.start :], dim=1)
        return self.logits[(condition.labels >= 0).long()[:, None], context]


@lru_cache
def table() -> Table:
    """Return a model of 4096 images."""
    return Table()


@lru_cache
def cells() -> Raster:
    """Return a transformer over the raster of 243 images; its weights are loud."""
    made = Raster(vocabulary=3, grid=(1, 5), depth=1, width=8, heads=1, hidden=16, classes=2)
    tiny.shaken(made, scale=0.5, seed=2)
    with torch.no_grad():
        made.head.linear.weight.mul_(2)
    return made.eval()


@lru_cache
def scales(*ladder: tuple[int, int], vocabulary: int = 3) -> VAR:
    """Return a next-scale model of few images; its weights are loud."""
    made = VAR(
        depth=1, width=8, heads=1, vocabulary=vocabulary, channels=2, classes=2, ladder=ladder
    )
    return tiny.shaken(made, scale=0.5, seed=2).eval()  # type: ignore[return-value]


def codes(model: Model) -> Any:
    """Return the tokenizer of a model, as much of it as models get to see."""
    vocabulary = model.head.vocabulary
    if model.schedule.is_raster:
        return Quantizer(vocabulary=vocabulary, channels=2).eval()
    made = MultiScaleQuantizer(vocabulary=vocabulary, channels=2, scales=len(model.schedule))
    return tiny.shaken(made, scale=0.6, seed=1).eval()


def condition(size: int) -> Condition:
    return Condition(torch.full((size,), LABEL))


@torch.no_grad()
def exact(model: Model, sampling: Sampling) -> Tensor:
    """Return the probabilities (V ** N,) float64 of all images, by teacher forcing."""
    vocabulary, schedule = model.head.vocabulary, model.schedule
    ids = torch.tensor(list(product(range(vocabulary), repeat=schedule.starts[-1])))
    parts, each = ids.split(schedule.sizes, dim=1), torch.ones(len(ids), dtype=torch.float64)
    canvas = codes(model).blank(len(ids), schedule)
    for k, part in enumerate(parts):  # settings, as the guidance, may differ from group to group
        span = schedule[k : k + 1]
        guide = sampling.guide_over(span)
        x = guide.spread(canvas.read(schedule[: k + 1]))
        h = model(x, schedule[: k + 1], condition(len(ids)).spread(guide.rows))
        prediction = model.head(h[:, -len(span) :], span, guide).shaped(sampling.over(span))
        each *= prediction.probs.double().gather(2, part[..., None])[..., 0].prod(dim=1)
        canvas = canvas.write(part)
    return each


def sampled(
    decoding: Any, sampling: Sampling, *, count: int, batch: int, seed: int = 0
) -> tuple[Tensor, float]:
    """Return how often images were drawn, (V ** N,), and turns per batch."""
    model, rng = decoding.model, Streams(seed, batch)
    watched, made = Watched(decoding), codes(model)
    base, length = model.head.vocabulary, model.schedule.starts[-1]
    counts, turns = torch.zeros(base**length), 0
    for _ in range(count // batch):
        run = decide(made, model.schedule, condition(batch), watched, sampling, rng)
        turns += sum(1 for _ in run)
        ids = torch.cat(watched.tokens, dim=1)
        index = (ids * base ** torch.arange(length - 1, -1, -1)).sum(dim=1)
        counts += torch.bincount(index, minlength=base**length)
    return counts, turns / (count // batch)


def doubt(counts: Tensor, law: Tensor, least: float = 8) -> float:
    """Return the probability that counts are as far from a law, or farther, by accident.

    By the G-test, 2 sum O log(O / E), on images pooled, from the least likely on, until each pool
    is expected so often. What is impossible must not occur at all: then it is 0.
    """
    if counts[law == 0].sum():
        return 0.0
    order = law.argsort()
    order = order[law[order] > 0]
    expected, seen = law[order] * counts.sum(), counts[order].double()
    pool, filled, number = [], 0.0, 0
    for each in expected.tolist():
        pool.append(number)
        filled += each
        if filled >= least:
            filled, number = 0.0, number + 1
    if filled:  # the last pool takes what is left
        pool = [min(k, number - 1) for k in pool]
    index, zeros = torch.tensor(pool), torch.zeros(number, dtype=torch.float64)
    expected, seen = zeros.index_add(0, index, expected), zeros.index_add(0, index, seen)
    g = 2 * torch.xlogy(seen, seen / expected).sum()
    freedom = torch.tensor((number - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, g.clamp(min=0) / 2))
