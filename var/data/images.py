"""Image data sets: name, pixels and class ids, fetched a whole batch at a time.

Every data set is a map from numbers to images (B, 3, H, W) in [0, 1] and labels (B,) int64.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from var.data.transforms import chance
from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer

log = logging.getLogger("var.data")


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
        unusable: files that were found to hold no image that can be used, and why, see `note`.
    """

    name: str
    classes: Sequence[str]
    size: int
    workers: int
    codes: bool
    unusable: dict[str, str]

    def __len__(self) -> int: ...
    def __getitems__(self, numbers: Sequence[int]) -> Batch: ...

    def plain(self) -> ImageData:
        """Return the data set without random crops and flips, for those who read it once.

        A batch of it lacks images that are unusable, where others of the data set replace them.
        """
        ...

    def digest(self) -> str:
        """Return a sha256 that tells it from others, as far as that can be had in little time."""
        ...

    def version(self) -> str:
        """Return a sha256 that changes, besides, with the files that it is read from."""
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
    unusable: dict[str, str] = {}  # of what cannot be unusable; others have their own

    def plain(self) -> ImageData:
        """Return the data set itself: nothing in it is random."""
        return self  # pyright: ignore[reportReturnType]

    def version(self) -> str:
        """Return the digest: it knows all that is handed out."""
        return cast(ImageData, self).digest()

    def reader(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer itself: it reads pixels."""
        return tokenizer


def note(unusable: dict[str, str], path: str, reason: str) -> None:
    """Add a file to those that are unusable, and say so if it is new.

    Worker processes do not: `var.data.batches.loader` hears of what they find, and says it once.
    """
    if path not in unusable:
        unusable[path] = reason
        if get_worker_info() is None:
            log.warning("unusable image %s: %s", path, reason)


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
        pixels: (N, H, W) uint8, grey; or (N, 3, H, W), in colour.
        labels: (N,) int64.
        classes: names of the classes.
        flip: mirror every other image.
        seed: which ones is a function of it and of the number.
    """

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        self.name, self.labels, self.classes = name, labels, list(classes)
        self.pixels = pixels if pixels.ndim == 4 else pixels[:, None]
        self.size, self.flip, self.seed = pixels.shape[-1], flip, seed

    def __len__(self) -> int:
        return len(self.pixels)

    def digest(self) -> str:
        """Return the sha256 of pixels and labels."""
        digest = hashlib.sha256(self.pixels.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        index = torch.as_tensor(numbers) % len(self)
        image = self.pixels[index].float().div(255)
        if self.flip:
            drawn = [torch.rand((), generator=chance(self.seed, number)) for number in numbers]
            mirrored = torch.stack(drawn) < 0.5
            image[mirrored] = image[mirrored].flip(-1)
        return Batch(image.expand(-1, 3, -1, -1).contiguous(), self.labels[index])

    def plain(self) -> ImageData:
        """Return the same images, none of them mirrored."""
        if not self.flip:
            return self  # pyright: ignore[reportReturnType]
        twin = copy(self)
        twin.flip = False
        return twin  # pyright: ignore[reportReturnType]


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
