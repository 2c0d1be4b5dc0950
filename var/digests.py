"""What tells weights and files from others: sha256 sums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """Return that of a module's weights and buffers, see `of_tensors`."""
    return of_tensors(module.state_dict())


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a sha256 of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum(path: Path, told: Callable[[int], object] = lambda count: None) -> str:
    """Return the sha256 of a file; `told` hears of bytes as they are read.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 23):
            digest.update(piece)
            told(len(piece))
    return digest.hexdigest()
