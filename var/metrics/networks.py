"""The contract of feature networks: what they see in images, which every metric is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from var.digests import fingerprint


class Seen(NamedTuple):
    """What a network sees in B images.

    Attributes:
        features: (B, D) float32, of which the Frechet distance is made.
        logits: (B, classes) float32; None: the network tells no classes.
        spatial: (B, S) float32, features that keep places apart (sFID); None: there are none.
    """

    features: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class Network(Protocol):
    """A feature network: an `nn.Module` called with images (B, 3, H, W) uint8.

    Attributes:
        name: of the Frechet distance that it gives: `FID`, `FD-FashionMNISTCNN`.
        labelled: whether its classes are those of the data, so that they tell label agreement.
        num_features: length D of its features.
    """

    name: str
    labelled: bool
    num_features: int

    def __call__(self, image: Tensor) -> Seen: ...


_SLICE = 64  # images that a network sees at a time: batches are made for generators


def exact(network: Network, image: Tensor) -> Seen:
    """Return what a network sees in images (B, 3, H, W) uint8, in full float32 on any device."""
    with torch.backends.cudnn.flags(allow_tf32=False), _full_matmul():
        seen = [network(part) for part in image.split(_SLICE)]
    columns: Any = zip(*seen, strict=True)
    return Seen(*(None if each[0] is None else torch.cat(each) for each in columns))


@contextmanager
def _full_matmul() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def device_of(network: Network) -> torch.device:
    """Return where a network is, and images for it go; the CPU if it has no tensors."""
    module = cast(nn.Module, network)
    held = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def identity(network: Network) -> str:
    """Return a sha256 of all that decides what a network sees.

    That is its weights, its other buffers, such as the mean of pixels, and what its `repr` says:
    networks put what is no tensor into their `extra_repr`.
    """
    module = cast(nn.Module, network)
    digest = hashlib.sha256(f"{network.name} {fingerprint(module)} {module!r}".encode())
    for name, buffer in sorted(module.named_buffers()):
        digest.update(f"{name} {buffer.tolist()}".encode())
    return digest.hexdigest()
