"""From what a run holds, as it is held, to a snapshot of wholes, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from var.training.checkpoint import Snapshot
from var.training.ema import Ema
from var.training.parallel import gathered, local, spread


def captured(
    module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, *, keep: bool
) -> dict[str, dict[str, Tensor]]:
    """Return weights, average and the optimiser's memory as wholes; all processes have to ask.

    Args:
        module, ema, optimizer: of the run.
        keep: this process wants them; the others get nothing.
    """
    parts: dict[str, Mapping[str, Tensor]] = {
        "model": module.state_dict(),
        "average": ema.state(),
        "optimizer": _memory(optimizer, module),
    }
    cpu = torch.device("cpu")
    return {name: gathered(part, keep=keep, device=cpu) for name, part in parts.items()}


@torch.no_grad()
def restore(module: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
    """Give a module and its optimiser the state of a `Snapshot` for that module."""
    for name, held in module.state_dict().items():
        local(held).copy_(local(spread(snapshot.model[name], held)))
    _remind(optimizer, module, snapshot.optimizer)


def _memory(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return what an optimiser remembers of a model's weights, as `<name>/<slot>`."""
    return {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def _remind(
    optimizer: torch.optim.Optimizer, model: nn.Module, memory: Mapping[str, Tensor]
) -> None:
    """Let an optimiser remember what it did; it counts its steps on the device."""
    parameters = dict(model.named_parameters())
    for key, value in memory.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        held = spread(value, parameter) if value.ndim else value.to(parameter.device)
        optimizer.state[parameter][slot] = held
