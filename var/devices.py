"""Devices and number types by name, and the share of each of several processes."""

from __future__ import annotations

import torch

from var.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    """Return the number type of a name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}: there are {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(name: str) -> torch.device:
    """Return the device of a name such as `cpu` or `cuda:1`; `auto` is a GPU if there is one.

    Raises:
        UserError: there is no such device, or not on this machine.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:<number>") from error
    seen = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise UserError(f"device {name} is not there: PyTorch sees {seen} GPUs; use device=cpu")
    return device


def share(count: int, rank: int, processes: int) -> range:
    """Return which of `count` things process `rank` sees to: neighbours, evenly shared.

    >>> [list(share(5, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(count * rank // processes, count * (rank + 1) // processes)
