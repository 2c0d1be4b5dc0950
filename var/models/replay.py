"""CUDA graphs: a backbone's forward pass is captured once per span and batch, then replayed.

The steps of a next-scale model launch thousands of small kernels, which takes longer than the
kernels do as long as batches are small. All their shapes are known: each step of a schedule is one
graph; all steps of a raster that are as long as each other, and as far as each other up to a
stride, are one. Needs a cache whose memories stay where they are, `var.cache.static.Static`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from var.cache.base import Cache, Place
from var.condition import Condition
from var.models.base import check_span
from var.schedule import Rolling, Span

# Positions by which what a step of a raster reads grows from one graph to the next.
_STRIDE = 64

Forward = Callable[[Tensor, Span, Condition, Cache | None], Tensor]


class Replay:
    """A forward pass that is captured and replayed where that is possible, and called elsewhere.

    A step is called the first time, which allocates, and compiles, whatever needs it; captured the
    second time; replayed from then on, until the cache moves.

    Args:
        forward: the backbone's own.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self._reels: WeakKeyDictionary[Cache, _Reel] = WeakKeyDictionary()

    def __call__(
        self, x: Tensor, span: Span, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """Return the features (R, L, D); valid until the next step is taken."""
        place = None if cache is None or torch.is_grad_enabled() else cache.place()
        # A cache without a place has no room yet: a graph would keep it in memory of its own.
        if cache is None or not place or not x.is_cuda:
            return self.forward(x, span, condition, cache)
        reel = self._reels.get(cache)
        if reel is None or reel.place != place:  # what was captured before has lost its memory
            reel = self._reels[cache] = _Reel(place, torch.cuda.Stream(x.device))
        moves = _rolls(span, cache)
        where = (span.schedule, len(span), _reach(span)) if moves else span
        forms = tuple((name, t.shape, t.dtype) for name, t in _tensors(condition).items())
        key = (where, x.shape, x.dtype, forms)
        if key in reel.steps:
            check_span(span, span.schedule, cache)
            return reel.steps[key].replay(x, span, condition)
        if key not in reel.seen:
            reel.seen.add(key)
            return self.forward(x, span, condition, cache)
        moving = rolling(span, x.device) if moves else span
        step = _Step.capture(self.forward, x, moving, condition, cache, reel)
        reel.steps[key] = step
        return step.replay(x, span, condition)

    def forget(self) -> None:
        """Forget what was captured: the weights have moved."""
        self._reels.clear()


@dataclass
class _Reel:
    """The steps captured over one cache, which share their scratch memory."""

    place: Place
    stream: torch.cuda.Stream
    steps: dict[Any, _Step] = field(default_factory=dict[Any, "_Step"])
    seen: set[Any] = field(default_factory=set[Any])
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)


@dataclass
class _Step:
    graph: torch.cuda.CUDAGraph
    x: Tensor
    span: Span
    condition: Condition
    given: Condition
    features: Tensor
    # Geometry that the graph reads, and that its makers may forget.
    held: tuple[Tensor, ...]

    @classmethod
    def capture(
        cls,
        forward: Forward,
        x: Tensor,
        span: Span,
        condition: Condition,
        cache: Cache,
        reel: _Reel,
    ) -> _Step:
        with torch.inference_mode(False):  # to be written to later, in whatever mode
            x, given, condition = x.clone(), condition, _mapped(condition, Tensor.clone)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=reel.pool, stream=reel.stream):
            features = forward(x, span, condition, cache)
        held = () if isinstance(span, Rolling) else (span.levels(x.device),)
        return cls(graph, x, span, condition, given, features, held)

    def replay(self, x: Tensor, span: Span, condition: Condition) -> Tensor:
        self.x.copy_(x)
        if isinstance(self.span, Rolling):
            here = span.positions
            torch.arange(here.start, here.stop, out=self.span.index)
        if condition is not self.given:  # texts are large, and the same at every step
            self.given = condition
            for name, tensor in _tensors(self.condition).items():
                tensor.copy_(getattr(condition, name))
        self.graph.replay()
        return self.features


def rolling(span: Span, device: torch.device) -> Rolling:
    """Return a span that can be moved to where all spans of a raster like it lie."""
    stop = _reach(span)
    with torch.inference_mode(False):
        index = torch.arange(span.start, span.stop, device=device)
    return Rolling(span.schedule, stop - len(span), stop, index)


def _rolls(span: Span, cache: Cache) -> bool:
    # The span in which a raster begins is its own: the condition stands in it. And there must be
    # room up to where the steps' reach is rounded.
    if span.start == 0 or not span.schedule.is_raster:
        return False
    return all(room.shape[-2] >= _reach(span) for room in cache.layers[0].tensors())


def _reach(span: Span) -> int:
    return min(len(span.schedule), -(-span.stop // _STRIDE) * _STRIDE)


def _tensors(condition: Condition) -> dict[str, Tensor]:
    return {name: value for name, value in vars(condition).items() if isinstance(value, Tensor)}


def _mapped(condition: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    return replace(condition, **{k: change(tensor) for k, tensor in _tensors(condition).items()})
