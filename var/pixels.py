"""Images as whole numbers: the one place where it is decided how they are rounded."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] as uint8 of the same shape, rounded to nearest.

    The published demos truncate, which darkens every image by half a level.
    """
    return images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
