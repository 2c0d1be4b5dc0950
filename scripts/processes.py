"""The processes of a command that shares its work out, and the device of each."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import PartialState

from var.devices import parse_device


def placed(name: str, patience: timedelta | None = None) -> tuple[torch.device, PartialState]:
    """Return the device of this process, of those that a name stands for, and all processes.

    Args:
        name: as in `parse_device`; with several processes each has its own of that kind.
        patience: how long a process may wait for the others; None: as is usual.

    Raises:
        UserError: there is no such device.
    """
    device = parse_device(name)
    how: dict[str, Any] = {} if patience is None else {"timeout": patience}
    state = PartialState(cpu=device.type == "cpu", **how)
    if state.num_processes > 1 and device.type != "cpu":
        device = cast(torch.device, state.device)
    return device, state
