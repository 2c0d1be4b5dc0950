"""Folders of images, one per class, as ImageNet comes; cropped at random to train on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from var.data.images import RESIZE, Batch, ImageData, Images, centre_crop, to_tensor, upright
from var.errors import UserError


@dataclass(frozen=True)
class RandomCrop:
    """The published training transform (VAR, section 5): PIL image and number to (3, size, size).

    Attributes:
        size: of the crop.
        enlarge: the shorter edge is first resized to `round(enlarge * size)`.
        flip: mirror every other image.
        seed: what is drawn is a function of it and of the number.
        resize: how: `lanczos` as published there, or `halving`, see `var.data.images.halved`.
    """

    size: int
    enlarge: float = 1.125
    flip: bool = True
    seed: int = 0
    resize: str = "lanczos"

    def __call__(self, image: Image.Image, number: int) -> Tensor:
        rng = _generator(self.seed, number)
        image = RESIZE[self.resize](upright(image), round(self.enlarge * self.size))
        left, top = (
            int(torch.randint(side - self.size + 1, (), generator=rng)) for side in image.size
        )
        crop = to_tensor(image.crop((left, top, left + self.size, top + self.size)))
        mirrored = self.flip and torch.rand((), generator=rng) < 0.5
        return crop.flip(-1) if mirrored else crop


def _generator(seed: int, number: int) -> torch.Generator:
    # Mixed, because numbers of a long run lie further apart than any step between two seeds.
    mixed = np.random.SeedSequence((seed, number)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


class ImageFolder(Images):
    """Image files, decoded when they are asked for.

    Args:
        name: of the data set.
        root: folder that the files lie in.
        files: their paths in it.
        labels: (N,) their classes.
        classes: names of the classes.
        size: side of the images handed out.
        enlarge: shorter edge before the crop, in sizes.
        resize: how the shorter edge is resized before the centre is cut out.
        crop: how to crop at random; None: the centre is cut out.
        workers: processes that a loader shall read with.
    """

    def __init__(
        self,
        *,
        name: str,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        size: int,
        enlarge: float = 1.125,
        resize: str = "lanczos",
        crop: RandomCrop | None = None,
        workers: int = 0,
    ) -> None:
        self.name, self.root, self.classes = name, root, list(classes)
        # In one piece of memory: worker processes would copy a long list as they count references.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.size, self.enlarge, self.resize = size, enlarge, resize
        self.crop, self.workers = crop, workers

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        index = torch.as_tensor(numbers) % len(self)
        return Batch(torch.stack([self._image(number) for number in numbers]), self.labels[index])

    def digest(self) -> str:
        """Return the sha256 of file names, labels and how the centre is cut out."""
        # Caches that were made before there was a choice go on counting.
        how = "" if self.resize == "lanczos" else f" {self.resize}"
        digest = hashlib.sha256(f"{self.size} {self.enlarge}{how}".encode())
        digest.update(self.files.tobytes())
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def plain(self) -> ImageData:
        """Return the same images, of each the centre."""
        twin = copy(self)
        twin.crop = None
        return twin  # pyright: ignore[reportReturnType]

    def _image(self, number: int) -> Tensor:
        path = self.root / os.fsdecode(self.files[number % len(self)])
        try:
            with Image.open(path) as image:
                if self.crop is None:
                    return centre_crop(self.size, self.enlarge, self.resize)(image)
                return self.crop(image, number)
        except Exception as error:  # Pillow raises whatever it stumbles over in a damaged file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"cannot read the image {path} ({reason}): restore it, or remove it"
            ) from error


def image_folder(
    *,
    root: str | Path,
    train: bool,
    size: int,
    enlarge: float = 1.125,
    flip: bool = True,
    seed: int = 0,
    resize: str = "lanczos",
    name: str = "image_folder",
    workers: int = 0,
) -> ImageFolder:
    """Return the images below a folder, those in one folder being one class.

    Args:
        root: holds `train/<class>/…` and `val/<class>/…`, or `<class>/…` for both splits.
        train: the training images, cropped at random; or the others, of which the centre is cut.
        size, enlarge, flip, seed, resize: see `RandomCrop`.
        name: of the data set.
        workers: processes that a loader shall read with.

    Raises:
        UserError: there are no images, a test class is unknown, or a number makes no sense.
    """
    if size < 1 or enlarge < 1 or seed < 0:
        raise UserError(
            f"size={size} enlarge={enlarge} seed={seed} of {name}: use 1 or more, 1 or more, "
            "0 or more"
        )
    split = _split(Path(root), train)
    if resize not in RESIZE:
        raise UserError(f"resize={resize} of {name}: use {' or '.join(RESIZE)}")
    # Test images are labelled as training images are, even if some classes have none.
    first = Path(root, "train") if Path(root, "train").is_dir() else split
    classes = _classes(first)
    if unknown := sorted(set(_classes(split)) - set(classes)):
        raise UserError(f"{split / unknown[0]} is a class that {first} has no folder of")
    files, labels = _listing(split, classes)
    return ImageFolder(
        name=name,
        root=split,
        files=files,
        labels=labels,
        classes=classes,
        size=size,
        enlarge=enlarge,
        resize=resize,
        crop=RandomCrop(size, enlarge, flip, seed, resize) if train else None,
        workers=workers,
    )


def _split(root: Path, train: bool) -> Path:
    """Return the folder of a split: one of its own, or that of all images."""
    folders = {True: root / "train", False: root / "val"}
    if not any(folder.is_dir() for folder in folders.values()):
        return root
    if not folders[train].is_dir():
        raise UserError(f"{folders[train]} is missing beside {folders[not train]}: restore it")
    return folders[train]


def _classes(folder: Path) -> list[str]:
    from torchvision.datasets.folder import find_classes

    try:
        names, _ = find_classes(str(folder))
    except OSError as error:
        raise UserError(
            f"no folders of images below {folder}, as ImageNet comes: data.root names the folder "
            "of train/<class>/… and val/<class>/…, or of <class>/…"
        ) from error
    return [name for name in names if not name.startswith(".")]


def _listing(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return files, as paths in the folder, and labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    ids = {name: i for i, name in enumerate(classes)}
    found = make_dataset(str(folder), ids, IMG_EXTENSIONS, allow_empty=True) if ids else []
    if not found:
        raise UserError(f"no images in the folders below {folder}: {', '.join(IMG_EXTENSIONS)}")
    return [os.path.relpath(path, folder) for path, _ in found], [label for _, label in found]
