"""Devices and number types by name, and the share of each of several processes."""

from __future__ import annotations

import torch

from var.errors import UserError
from var.nn.linear import bfloat16_is_faster

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the number type of a name; `auto` is bf16 where the device is fast at it, else fp32.

    Raises:
        UserError: there is none of that name.
    """
    if name == "auto":
        return torch.bfloat16 if _is_fast_at_bfloat16(device) else torch.float32
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: there are auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a number type."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return bfloat16_is_faster()
    # `is_bf16_supported` would count what the GPU emulates.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


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


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device, or the host, has no memory left."""
    phrases = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(p in str(error) for p in phrases)


def share(count: int, rank: int, processes: int) -> range:
    """Return which of `count` things process `rank` sees to: neighbours, evenly shared.

    >>> [list(share(5, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(count * rank // processes, count * (rank + 1) // processes)


def pieces(count: int, size: int) -> list[range]:
    """Return `count` things cut into pieces of so many, the last of what is left.

    >>> [list(piece) for piece in pieces(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
