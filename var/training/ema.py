"""Exponential moving average of the weights, with a warm-up so that short runs profit too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from var.training.parallel import gathered, local, spread


class Ema:
    """The average of a module's weights, held as these are held; buffers are copied.

    The decay after n updates is `min(decay, (1 + n) / (10 + n))`: early averages forget the
    initial weights quickly.

    Args:
        module: whose weights are averaged, before they are shared out or compiled.
        decay: share of the old average that is kept, 0..1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average: dict[str, Tensor] = {}
        hollow = {id(p): nn.Parameter(_hollow(p), False) for p in module.parameters()}
        self.twin = copy.deepcopy(module, hollow).eval()

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        """Begin with the weights of the module, now that it is where it will be trained."""
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights of the module into the average, without waiting for the device."""
        n = self.updates
        share = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        old = [local(value) for value in self.average.values()]
        new = [local(p) for p in module.parameters()]
        torch._foreach_lerp_(old, new, share)
        for own, theirs in zip(self.twin.buffers(), module.buffers(), strict=True):
            own.copy_(theirs)
        self.updates += 1

    @contextmanager
    def shown(self, here: bool = True, device: torch.device | None = None) -> Iterator[nn.Module]:
        """Lend a whole module with the averaged weights; all processes have to ask for it.

        Args:
            here: this process will look at it; to the others an empty one is lent.
            device: where to put weights that are shared out; None: where they are.
        """
        if here:
            self.twin.load_state_dict(
                gathered(self.average, device=device), strict=False, assign=True
            )
        else:
            gathered(self.average, keep=False)
        try:
            yield self.twin
        finally:  # what was gathered takes much room
            hollow = {name: _hollow(value) for name, value in self.average.items()}
            self.twin.load_state_dict(hollow, strict=False, assign=True)

    def state(self) -> dict[str, Tensor]:
        """Return average and buffers, as they are held."""
        return {**self.average, **dict(self.twin.named_buffers())}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on with a whole state after so many updates."""
        self.updates = updates
        for name, held in self.state().items():
            local(held).copy_(local(spread(state[name], held)))


def _hollow(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
