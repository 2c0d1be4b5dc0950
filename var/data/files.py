"""Images in files, decoded when they are asked for; those that cannot be are skipped."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from var.data.images import Batch, ImageData, Images, note
from var.data.transforms import RESIZE, RandomCrop, centre_crop
from var.errors import UserError

_SMALLEST = 8


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read.

    Attributes:
        train: cropped at random; or the centre cut out.
        size: side of the images handed out.
        enlarge: shorter edge before the crop, in sizes.
        flip: mirror every other training image.
        seed: of crops and mirrors.
        resize: how the shorter edge is resized before the crop, see `RESIZE`.
        workers: processes that a loader shall read with.
        smallest: images with a shorter edge of fewer pixels are unusable.
        unusable: `skip`: in place of an unusable image the next one is read; `raise`: stop there.

    Raises:
        UserError: a value makes no sense.
    """

    train: bool
    size: int
    enlarge: float = 1.125
    flip: bool = True
    seed: int = 0
    resize: str = "lanczos"
    workers: int = 0
    smallest: int = _SMALLEST
    unusable: str = "skip"

    def __post_init__(self) -> None:
        if self.size < 1 or self.enlarge < 1 or self.seed < 0 or self.smallest < 1:
            raise UserError(
                f"data.size={self.size} enlarge={self.enlarge} seed={self.seed} "
                f"smallest={self.smallest}: use 1 or more, 1 or more, 0 or more, 1 or more"
            )
        for name, choices in {"resize": RESIZE, "unusable": ("skip", "raise")}.items():
            if getattr(self, name) not in choices:
                raise UserError(f"data.{name}={getattr(self, name)}: use {' or '.join(choices)}")

    @property
    def crop(self) -> RandomCrop | None:
        """How to crop at random; None: the centre is cut out."""
        if not self.train:
            return None
        return RandomCrop(self.size, self.enlarge, self.flip, self.seed, self.resize)


class Files(Images):
    """Image files in a folder.

    Args:
        name: of the data set.
        root: folder that the files lie in.
        files: their paths in it.
        labels: (N,) their classes.
        classes: names of the classes.
        reading: how they are read.
        unusable: files that are known to be unusable, and why, in words of `shown`.
    """

    def __init__(
        self,
        *,
        name: str,
        root: Path,
        files: Sequence[bytes],
        labels: Sequence[int],
        classes: Sequence[str],
        reading: Reading,
        unusable: Mapping[str, str],
    ) -> None:
        self.name, self.root, self.classes = name, root, list(classes)
        # In one piece of memory: worker processes would copy a long list as they count references.
        self.files = np.array(files)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.reading, self.crop, self.replace = reading, reading.crop, True
        self.size, self.workers = reading.size, reading.workers
        self.unusable = dict(unusable)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        found = [each for number in numbers if (each := self._usable(number)) is not None]
        images = [image for image, _ in found]
        return Batch(
            torch.stack(images) if images else torch.empty(0, 3, self.size, self.size),
            self.labels[[index for _, index in found]],
        )

    def digest(self) -> str:
        """Return the sha256 of file names, labels and how the centre is cut out."""
        # Caches that were made before there was a choice go on counting.
        how = "" if self.reading.resize == "lanczos" else f" {self.reading.resize}"
        how += "" if self.reading.smallest == _SMALLEST else f" {self.reading.smallest}"
        digest = hashlib.sha256(f"{self.size} {self.reading.enlarge}{how}".encode())
        digest.update(self.files.tobytes())
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def version(self) -> str:
        """Return the sha256 of the digest, and of where, how long and how old each file is."""
        root = self.root.resolve()
        digest = hashlib.sha256(f"{self.digest()} {root}".encode())
        for path in dict.fromkeys(self.path(index) for index in range(len(self))):
            try:
                stat = path.stat()
            except OSError:  # it will be found unusable
                continue
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def plain(self) -> ImageData:
        """Return the same images, of each the centre; unusable ones are left out of batches."""
        twin = copy(self)
        twin.crop, twin.replace, twin.unusable = None, False, dict(self.unusable)
        return twin  # pyright: ignore[reportReturnType]

    def path(self, index: int) -> Path:
        """Return the file that an image is in."""
        return self.root / os.fsdecode(self.files[index])

    def open(self, index: int) -> Path | io.BytesIO:
        """Return what Pillow reads an image from."""
        return self.path(index)

    def _usable(self, number: int) -> tuple[Tensor, int] | None:
        """Return the image of a number, or the next one that can be used; and its index.

        A function of the number and the files: on any process, in any order, the same.
        """
        for step in range(len(self) if self.replace else 1):
            index = (number + step) % len(self)
            image = self._image(index, number)
            if image is not None:
                return image, index
        if self.replace:
            path, reason = next(iter(self.unusable.items()))
            raise UserError(
                f"none of the {len(self)} images of {self.root} can be used, {path} for one "
                f"({reason}): restore them"
            )
        return None

    def _image(self, index: int, number: int) -> Tensor | None:
        path = shown(self.root, self.files[index])
        if path in self.unusable:
            return None
        try:
            return self._decoded(index, number)
        except Exception as error:  # Pillow raises whatever it stumbles over in a damaged file
            if not self.root.exists():
                raise UserError(f"{self.root} is gone: restore it") from error
            if self.reading.unusable == "raise":
                raise UserError(
                    f"cannot read the image {path} ({_reason(error)}): restore it or remove it, "
                    "or let it be skipped by data.unusable=skip"
                ) from error
            note(self.unusable, path, _reason(error))
            return None

    def _decoded(self, index: int, number: int) -> Tensor:
        with Image.open(self.open(index)) as image:
            if min(image.size) < self.reading.smallest:
                width, height = image.size
                raise ValueError(
                    f"{width}x{height} pixels, the shorter edge is below "
                    f"data.smallest={self.reading.smallest}"
                )
            if self.crop is not None:
                return self.crop(image, number)
            return centre_crop(self.size, self.reading.enlarge, self.reading.resize)(image)


def shown(root: Path, file: bytes) -> str:
    """Return the path of a file as text, whatever bytes are in it."""
    return os.fsencode(root / os.fsdecode(file)).decode(errors="backslashreplace")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own words name an object in memory
        return "not an image"
    text = error.strerror if isinstance(error, OSError) else None
    return " ".join((text or str(error)).split()) or type(error).__name__
