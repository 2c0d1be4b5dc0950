"""The heads of the naive row: predictions drawn the obvious way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from var.heads.categorical import Categorical, CategoricalPrediction, SmoothPrediction
from var.heads.flow import Flow, FlowPrediction
from var.heads.ode import Solver, Velocity
from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Span


def autocast(x: Tensor, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which products are computed in `dtype`, weights cast at each use."""
    half = dtype != torch.float32
    # Without the cache of casts, which would be good for one call only.
    return torch.autocast(x.device.type, dtype if half else None, half, cache_enabled=False)


class NaivePrediction(CategoricalPrediction):
    """A prediction that sorts all logits for each filter."""

    def shaped(self, sampling: Sampling) -> CategoricalPrediction:
        """Return the prediction after temperature, top-k and top-p of a single group."""
        temperature = cast(float, sampling.temperature)
        before, after = (1.0, temperature) if sampling.temper_last else (temperature, 1.0)
        logits = self.logits / before
        if sampling.top_k:
            logits = _top_k(logits, cast(int, sampling.top_k))
        if sampling.top_p:
            logits = _top_p(logits, cast(float, sampling.top_p))
        kind = SmoothPrediction if sampling.smooth else CategoricalPrediction
        return kind(logits / after, self.progress)


def _top_k(logits: Tensor, k: int) -> Tensor:
    values = logits.sort(dim=-1, descending=True).values
    least = values[..., min(k, values.shape[-1]) - 1, None]
    return logits.masked_fill(logits < least, -torch.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = values.softmax(dim=-1).flip(-1).cumsum(dim=-1).flip(-1)  # of a code and all below
    out = mass <= 1 - p
    out[..., 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


class NaiveHead(nn.Module):
    """A head that predicts from all rows, whatever they weigh."""

    def __init__(self, head: Categorical, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.dtype, self.heeds = head, dtype, head.heeds

    def forward(self, h: Tensor, span: Span, guide: Guide) -> NaivePrediction:
        """Return the guided distributions of features (R, L, D)."""
        with autocast(h, self.dtype):
            logits = self.head.linear(h).float()
        return NaivePrediction(guide(logits), guide.progress)

    def check(self, sampling: Sampling) -> None:
        """Check what the head checks."""
        self.head.check(sampling)

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the head's loss."""
        return self.head.loss(h, tokens, span, rng)


@dataclass(frozen=True, eq=False)
class NaiveFlowPrediction(FlowPrediction):
    """A flow that computes everything again at each step, for all rows.

    Attributes:
        dtype: what products are computed in.
    """

    dtype: torch.dtype = torch.float32

    def field(self, path: Solver) -> Velocity:
        """Return the guided velocities at the times at which a solver looks."""
        looks = path.looks
        first, last = cast(tuple[float, float], self.sampling.interval)

        def velocity(x: Tensor, look: int) -> Tensor:
            t = looks[look].to(self.h.device, torch.float32).expand(len(self.h), 1)
            with autocast(self.h, self.dtype):
                known = self.net.meet(self.h, self.span)
                v = self.net(self.guide.spread(x.float()), self.net.clock(t), known)
            return self.guide(v) if first <= looks[look] <= last else v[: self.images]

        return velocity


class NaiveFlow(nn.Module):
    """A flow head whose predictions are naive."""

    def __init__(self, head: Flow, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.dtype, self.heeds = head, dtype, head.heeds

    def forward(self, h: Tensor, span: Span, guide: Guide) -> NaiveFlowPrediction:
        """Return the prediction of features (R, L, W)."""
        return NaiveFlowPrediction(self.head.net, h, span, guide, dtype=self.dtype)

    def check(self, sampling: Sampling) -> None:
        """Check what the head checks."""
        self.head.check(sampling)

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the head's loss."""
        return self.head.loss(h, tokens, span, rng)


def naive_head(head: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """Return the naive head around another one; None if there is none for its kind."""
    for kind, make in ((Categorical, NaiveHead), (Flow, NaiveFlow)):
        if isinstance(head, kind):
            return make(head, dtype)
    return None
