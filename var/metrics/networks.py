"""The contract of feature networks: what they see in images, which every metric is made of."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


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
