"""Random changes to what a discriminator sees, so that it cannot learn a small data set by heart.

Real and generated images are changed by the same law, and gradients pass (arXiv 2006.10738).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Augment(nn.Module):
    """Change the colours of images (B, 3, H, W) in [-1, 1], move them, cut a hole; each by chance.

    Chance is the default generator of the device. 0 leaves a change out.

    Args:
        colour: strength of the changes of brightness, saturation and contrast; 1 as published.
        translation: largest shift, as a share of a side; what comes in from outside is 0.
        cutout: side of the hole, as a share of the image's.
    """

    def __init__(
        self, *, colour: float = 1.0, translation: float = 0.125, cutout: float = 0.5
    ) -> None:
        super().__init__()
        self.colour, self.translation, self.cutout = colour, translation, cutout

    def forward(self, image: Tensor) -> Tensor:
        if self.colour:
            image = coloured(image, self.colour)
        if self.translation:
            image = moved(image, self.translation)
        return holed(image, self.cutout) if self.cutout else image


def coloured(image: Tensor, strength: float) -> Tensor:
    """Return images with other brightness, saturation and contrast, each within `strength`."""
    brightness, saturation, contrast = strength * (
        2 * torch.rand(3, len(image), 1, 1, 1, device=image.device) - 1
    )
    image = image + brightness / 2
    image = torch.lerp(image.mean(dim=1, keepdim=True), image, 1 + saturation)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, image, 1 + contrast / 2)


def moved(image: Tensor, share: float) -> Tensor:
    """Return images shifted by up to `share` of their sides, zeros around them."""
    rows, columns = (
        _positions(len(image), side, round(side * share), image.device) for side in image.shape[-2:]
    )
    number = torch.arange(len(image), device=image.device)[:, None, None]
    # A frame of zeros is what positions outside are clamped to.
    framed = F.pad(image, (1, 1, 1, 1)).movedim(1, -1)
    return framed[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _positions(batch: int, side: int, most: int, device: torch.device) -> Tensor:
    shift = torch.randint(-most, most + 1, (batch, 1), device=device)
    return (torch.arange(1, side + 1, device=device) + shift).clamp(0, side + 1)


def holed(image: Tensor, share: float) -> Tensor:
    """Return images with a square hole of zeros, centred anywhere on them."""
    inside = [
        _near(len(image), side, round(side * share), image.device) for side in image.shape[-2:]
    ]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return image.masked_fill(hole, 0)


def _near(batch: int, side: int, width: int, device: torch.device) -> Tensor:
    first = torch.randint(0, side + 1, (batch, 1), device=device) - width // 2
    place = torch.arange(side, device=device)
    return (place >= first) & (place < first + width)
