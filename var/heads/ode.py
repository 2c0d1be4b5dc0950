"""Following a flow from noise (time 1) to data (time 0): time grids and solvers.

Grids are made in float64 and states are kept in it: which of a thousand time steps a network is
told is decided by the last bit (FlowAR, section 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from var.errors import UserError

# State (B, ...) and number of the look to velocity (B, ...).
Velocity = Callable[[Tensor, int], Tensor]


def uniform(steps: int) -> Tensor:
    """Return times from 1 to 0 in equal steps, (steps + 1,) float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def published(steps: int) -> Tensor:
    """Return FlowAR's times (section 4): an even number of steps, finer near 0; 50 equal ones.

    Raises:
        UserError: there would be no step at all.
    """
    if steps == 50:
        return uniform(steps)
    half = steps // 2
    if not half:
        raise UserError("solver=published needs 2 steps or more: take solver=euler")
    early = torch.linspace(1, 0.3, half, dtype=torch.float64)
    return torch.cat([early, torch.linspace(0.25, 0, half + 1, dtype=torch.float64)])


@dataclass(frozen=True)
class Solver:
    """An explicit Runge-Kutta method of one or two stages.

    At time 0 nothing is looked at: networks hardly learn what a flow does there. A last step that
    would have to is one of first order.

    Attributes:
        times: (S + 1,) float64, falling to 0.
        reach: how far into a step the second look is taken, as a share of it; None: there is none,
            the method is of first order. One half is the midpoint method, 1 that of Heun.
    """

    times: Tensor
    reach: float | None = None

    @property
    def looks(self) -> Tensor:
        """Times at which the velocity is looked at, in order, float64."""
        if self.reach is None:
            return self.times[:-1]
        begin, end = self.times[:-1], self.times[1:]
        both = torch.stack([begin, torch.lerp(begin, end, self.reach)], dim=1).flatten()
        return both[both > 0]

    def follow(self, x: Tensor, velocity: Velocity) -> Tensor:
        """Return where the flow leads, float64, from x (B, ...) at the first time."""
        kind = torch.float32 if x.device.type == "mps" else torch.float64  # which it does not have
        x, looks, look = x.to(kind), len(self.looks), 0
        for step in self.times.diff().tolist():
            v, look = velocity(x, look).to(kind), look + 1
            if self.reach is not None and look < looks:
                second = velocity(x + self.reach * step * v, look).to(kind)
                v, look = torch.lerp(v, second, 0.5 / self.reach), look + 1
            x = x + step * v
        return x


SOLVERS: dict[str, Callable[[int], Solver]] = {
    "euler": lambda steps: Solver(uniform(steps)),
    "heun": lambda steps: Solver(uniform(steps), reach=1.0),
    "midpoint": lambda steps: Solver(uniform(steps), reach=0.5),
    "published": lambda steps: Solver(published(steps)),
}


def solver(name: str, steps: int) -> Solver:
    """Return a solver by its name.

    Raises:
        UserError: there is none of that name, or it cannot do with so few steps.
    """
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}: there are {', '.join(SOLVERS)}")
    return SOLVERS[name](steps)
