"""Image data sets: name, pixels and class ids, fetched a whole batch at a time.

Every data set is a map from numbers to images (B, 3, H, W) in [0, 1] and labels (B,) int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer


class Batch(NamedTuple):
    """Images (B, 3, H, W) float32 in [0, 1], or codes (B, ...) of them, and labels (B,) int64."""

    image: Tensor
    label: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, copied without waiting."""
        return Batch(*(x.to(device, non_blocking=True) for x in self))


class ImageData(Protocol):
    """A data set that hands out batches, of images or of what a tokenizer made of them.

    It is asked by numbers that count on through the epochs, `epoch * length + index`. The image is
    that of the index, `number % length`; random crops and flips are a function of the number. So
    they are known from the seed and the step alone, whoever does the reading.

    Attributes:
        name: for run folders and cards.
        classes: names of the classes, by id.
        size: side of the images in pixels.
        workers: processes that a loader shall read with; 0: its own.
        codes: whether it hands out codes in place of images.
    """

    name: str
    classes: Sequence[str]
    size: int
    workers: int
    codes: bool

    def __len__(self) -> int: ...
    def __getitems__(self, numbers: Sequence[int]) -> Batch: ...

    def plain(self) -> ImageData:
        """Return the data set without random crops and flips."""
        ...

    def digest(self) -> str:
        """Return a sha256 that tells it from others, as far as that can be had in little time."""
        ...

    def reader(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer that reads what this data set hands out.

        Raises:
            UserError: it cannot be read with this tokenizer, or on this schedule.
        """
        ...


class Images(Dataset[Batch]):
    """What data sets have in common, as far as they do not say otherwise."""

    classes: Sequence[str]
    workers: int = 0
    codes: bool = False

    def plain(self) -> ImageData:
        """Return the data set itself: nothing in it is random."""
        return self  # pyright: ignore[reportReturnType]

    def reader(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer itself: it reads pixels."""
        return tokenizer


def check_pixels(data: ImageData, what: str) -> None:
    """Check that a data set holds images.

    Raises:
        UserError: it holds codes; `what` needs images.
    """
    if data.codes:
        raise UserError(f"{what} needs images: name the data set that these codes were made of")


class TensorImages(Images):
    """A data set that fits in memory.

    Args:
        name: of the data set.
        pixels: (N, H, W) uint8, grey.
        labels: (N,) int64.
        classes: names of the classes.
    """

    def __init__(self, name: str, pixels: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.name, self.pixels, self.labels, self.classes = name, pixels, labels, list(classes)
        self.size = pixels.shape[-1]

    def __len__(self) -> int:
        return len(self.pixels)

    def digest(self) -> str:
        """Return the sha256 of pixels and labels."""
        digest = hashlib.sha256(self.pixels.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        index = torch.as_tensor(numbers) % len(self)
        grey = self.pixels[index].float().div(255)
        return Batch(grey[:, None].expand(-1, 3, -1, -1).contiguous(), self.labels[index])


def digits(*, train: bool = True, size: int = 16) -> TensorImages:
    """Return scikit-learn's handwritten digits: real, 8x8, bundled, here enlarged to `size`.

    The last 297 of the 1797 images are the test split.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    part = slice(0, 1500) if train else slice(1500, None)
    pixels = torch.from_numpy(data.images[part]).float().mul(255 / 16)[:, None]
    pixels = F.interpolate(pixels, (size, size), mode="bicubic").round().clamp(0, 255)[:, 0]
    labels = torch.from_numpy(data.target[part].astype(np.int64))
    return TensorImages("digits", pixels.byte(), labels, [str(i) for i in range(10)])


def fashion_mnist(
    *, root: str | Path, train: bool = True, download: bool = False, padding: int = 2
) -> TensorImages:
    """Return Fashion-MNIST, its 28x28 images padded with black, by default to 32x32.

    Args:
        root: the folder that holds (or, with `download`, shall hold) `FashionMNIST/raw`.
        train: the 60 000 training images, or the 10 000 test images.
        download: fetch the files if they are missing.
        padding: pixels added on each side.

    Raises:
        UserError: the files are not there and `download` is off.
    """
    from torchvision.datasets import FashionMNIST

    try:
        data = FashionMNIST(str(root), train=train, download=download)
    except RuntimeError as error:
        raise UserError(
            f"no Fashion-MNIST below data.root={root}: name the folder of FashionMNIST/raw, "
            "or fetch it there with data.download=true"
        ) from error
    pixels = F.pad(data.data, (padding,) * 4)
    return TensorImages("fashion_mnist", pixels, data.targets, data.classes)


def crop_fashion_mnist(image: Tensor, padding: int = 2) -> Tensor:
    """Return images (B, 3, 32, 32) in [0, 1] as the original grey ones: (B, 1, 28, 28) uint8."""
    grey = image[..., padding:-padding, padding:-padding].mean(dim=1, keepdim=True)
    return grey.clamp(0, 1).mul(255).round().byte()


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
        image = resized(upright(image), whole(enlarge * size))
        left = whole((image.width - size) / 2)
        top = whole((image.height - size) / 2)
        return to_tensor(image.crop((left, top, left + size, top + size)))

    return transform


def upright(image: Image.Image) -> Image.Image:
    """Return an image in colour, turned as its camera says."""
    return ImageOps.exif_transpose(image).convert("RGB")


def shorter_edge(image: Image.Image, side: int) -> Image.Image:
    """Return an image with a shorter edge of `side` pixels, resized by Lanczos."""
    short, long = sorted(image.size)
    far = int(side * long / short)
    size = (side, far) if image.width <= image.height else (far, side)
    return image.resize(size, Image.Resampling.LANCZOS)


def halved(image: Image.Image, side: int) -> Image.Image:
    """Return an image with a shorter edge of `side` pixels, as diffusion models train on.

    It is halved by a box filter while that leaves enough, then resized by a bicubic one.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


# How a shorter edge is brought to a length.
RESIZE = {"lanczos": shorter_edge, "halving": halved}


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image in colour as (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
