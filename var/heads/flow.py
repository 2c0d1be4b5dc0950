"""The flow-matching head: tokens are followed from noise to data, a whole group at a time.

Letters: B images, R rows, L positions of a span, C latent channels, W width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from var.heads.flow_net import FlowNet, Known
from var.heads.ode import Solver, Velocity, solver
from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Span


@dataclass(frozen=True, eq=False)
class FlowPrediction:
    """Where a flow leads, given features.

    Attributes:
        net: velocities of the flow.
        h: (R, L, W) features.
        span: the groups.
        guide: guidance of the velocities, at times in the sampling's `interval`.
        sampling: steps, solver, interval and temperature.
    """

    net: FlowNet
    h: Tensor
    span: Span
    guide: Guide
    sampling: Sampling = field(default_factory=Sampling)

    def shaped(self, sampling: Sampling) -> FlowPrediction:
        """Return the prediction that a solver and a number of steps turn into tokens."""
        return replace(self, sampling=sampling)

    def sample(self, rng: Rng | None = None) -> Tensor:
        """Draw tokens (B, L, C) float32; without streams follow the flow from its mean, 0.

        Raises:
            UserError: there is no solver of that name.
        """
        shape = (len(self.span), self.net.channels)
        if rng is None:
            noise = self.h.new_zeros(self.images, *shape, dtype=torch.float32)
        else:
            noise = rng.normal(*shape).to(self.h.device) * cast(float, self.sampling.temperature)
        path = solver(self.sampling.solver, cast(int, self.sampling.steps))
        return path.follow(noise, self.field(path)).float()

    @property
    def images(self) -> int:
        """Number of images, B."""
        return len(self.h) // self.guide.rows

    def field(self, path: Solver) -> Velocity:
        """Return the guided velocities at the times at which a solver looks."""
        return _Field(self, path)


class _Field:
    """Guided velocities at the times at which a solver looks.

    All that does not depend on the tokens is computed here, before the first step. Null rows are
    evaluated at guided times only.
    """

    def __init__(self, prediction: FlowPrediction, path: Solver) -> None:
        guide, net, looks = prediction.guide, prediction.net, path.looks
        first, last = cast(tuple[float, float], prediction.sampling.interval)
        wanted = guide.rows > 1 and guide.scale != 1
        self.guided = [wanted and first <= t <= last for t in looks.tolist()]
        self.net, self.guide = net, guide
        self.clock = net.clock(
            looks.to(prediction.h.device, torch.float32, non_blocking=True)[:, None]
        )
        h = prediction.h if any(self.guided) else prediction.h[: prediction.images]
        self.both: Known = net.meet(h, prediction.span)
        self.given = self.both.first(prediction.images)

    def __call__(self, x: Tensor, look: int) -> Tensor:
        """Return the velocity (B, L, C) float32 of a state (B, L, C) at look number `look`."""
        clock, x = self.clock.at(look), x.float()
        if self.guided[look]:
            return self.guide(self.net(x, clock, self.both))
        return self.net(x, clock, self.given)


class Flow(nn.Module):
    """Flow matching: a network learns the velocity `noise - data` on straight paths between them.

    Args:
        net: the network.
    """

    heeds = frozenset({"guidance", "guided_groups", "temperature", "steps", "solver", "interval"})

    def __init__(self, net: FlowNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor, span: Span, guide: Guide) -> FlowPrediction:
        """Return the prediction of features (R, L, W)."""
        return FlowPrediction(self.net, h, span, guide)

    def check(self, sampling: Sampling) -> None:
        """Check the solver and its numbers of steps.

        Raises:
            UserError: there is none of that name, or it cannot do with so few.
        """
        steps = sampling.steps
        for number in steps if isinstance(steps, tuple) else (steps,):
            solver(sampling.solver, number)

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the squared error (B, L) float32 of velocities, given features (B, L, W).

        Its mean is the published loss: the mean error of each group, weighted by the group's size
        over that of the last one. Each group of an image has a time of its own (FlowAR, section 5).
        """
        data, t = tokens.float(), rng.uniform(len(span.sizes)).to(h.device)
        noise = rng.normal(*data.shape[1:]).to(data)
        each = t[:, span.levels(h.device) - span.start, None]
        velocity = self.net(
            torch.lerp(data, noise, each), self.net.clock(t), self.net.meet(h, span)
        )
        error = (velocity - (noise - data)).square().mean(dim=-1)
        return error * (len(span) / span.sizes[-1])
