"""From a picture to a tensor: put upright, in colour, resized and cropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_LONG = 3  # so many times as long as wide: only what is needed is resized


def upright(image: Image.Image) -> Image.Image:
    """Return an image in 8-bit colour, turned as its camera says, on white where it is transparent.

    Raises:
        ValueError: its pixels are floating-point numbers, whose range is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image in colour as (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


class Resizing(NamedTuple):
    """The last step of bringing an image to a size, not yet taken.

    Attributes:
        image: in colour.
        size: (width, height) that it shall have.
        filter: how.
    """

    image: Image.Image
    size: tuple[int, int]
    filter: Image.Resampling

    def crop(self, left: int, top: int, side: int) -> Tensor:
        """Take the step, and return a square of the result: (3, side, side) in [0, 1]."""
        if max(self.size) <= _LONG * min(self.size):
            whole = self.image.resize(self.size, self.filter)
            return to_tensor(whole.crop((left, top, left + side, top + side)))
        # The filter reaches beyond the box, so this is the same square; a thin strip as a whole
        # would grow to any length.
        (width, height), (far, high) = self.image.size, self.size
        box = (
            left * width / far,
            top * height / high,
            min((left + side) * width / far, width),
            min((top + side) * height / high, height),
        )
        return to_tensor(self.image.resize((side, side), self.filter, box=box))


def shorter_edge(image: Image.Image, side: int) -> Resizing:
    """Return how an image gets a shorter edge of `side` pixels, resized by Lanczos."""
    short, long = sorted(image.size)
    far = int(side * long / short)
    size = (side, far) if image.width <= image.height else (far, side)
    return Resizing(image, size, Image.Resampling.LANCZOS)


def halved(image: Image.Image, side: int) -> Resizing:
    """Return how an image gets a shorter edge of `side` pixels, as diffusion models train on.

    It is halved by a box filter while that leaves enough, then resized by a bicubic one.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return Resizing(image, size, Image.Resampling.BICUBIC)


# How a shorter edge is brought to a length.
RESIZE = {"lanczos": shorter_edge, "halving": halved}


def centre_crop(
    size: int, enlarge: float = 1.125, resize: str = "lanczos"
) -> Callable[[Image.Image], Tensor]:
    """Return the published validation transform: PIL image to (3, size, size), values in [0, 1].

    Args:
        size: of the crop.
        enlarge: the shorter edge is first resized to so many sizes, then the centre cut out.
        resize: `lanczos` (VAR, section 5) or `halving` (LlamaGen, section 5), see `RESIZE`.
    """
    resized, whole = RESIZE[resize], {"lanczos": round, "halving": int}[resize]

    def transform(image: Image.Image) -> Tensor:
        resizing = resized(upright(image), whole(enlarge * size))
        left, top = (whole((side - size) / 2) for side in resizing.size)
        return resizing.crop(left, top, size)

    return transform


@dataclass(frozen=True)
class RandomCrop:
    """The published training transform (VAR, section 5): PIL image and number to (3, size, size).

    Attributes:
        size: of the crop.
        enlarge: the shorter edge is first resized to `round(enlarge * size)`.
        flip: mirror every other image.
        seed: what is drawn is a function of it and of the number.
        resize: how: `lanczos` as published there, or `halving`, see `halved`.
    """

    size: int
    enlarge: float = 1.125
    flip: bool = True
    seed: int = 0
    resize: str = "lanczos"

    def __call__(self, image: Image.Image, number: int) -> Tensor:
        rng = chance(self.seed, number)
        resizing = RESIZE[self.resize](upright(image), round(self.enlarge * self.size))
        left, top = (
            int(torch.randint(side - self.size + 1, (), generator=rng)) for side in resizing.size
        )
        crop = resizing.crop(left, top, self.size)
        mirrored = self.flip and torch.rand((), generator=rng) < 0.5
        return crop.flip(-1) if mirrored else crop


def chance(seed: int, number: int) -> torch.Generator:
    """Return what is drawn for an image, a function of the data set's seed and of the number."""
    # Mixed, because numbers of a long run lie further apart than any step between two seeds.
    mixed = np.random.SeedSequence((seed, number)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))
