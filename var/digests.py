"""What tells weights and files from others: sha256 sums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Return a sha256 of the names, types, shapes and bytes of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
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
