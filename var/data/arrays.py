"""Images that come as arrays in one file: npz files of your own or of others, and CIFAR-10."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from var.bars import progress_bar
from var.data.images import TensorImages
from var.errors import UserError

# Names by which arrays are known; the second ones are those of ADM's sample and reference files.
_NAMES = {"images": ("images", "arr_0"), "labels": ("labels", "arr_1")}
_LAYOUT = "images (N, H, W[, 3]) uint8, or jpeg and offsets of JPEG files one after the other"


class Arrays(NamedTuple):
    """What is in a file: pixels (N, C, H, W) uint8, labels (N,) int64, and names of the classes."""

    pixels: Tensor
    labels: Tensor
    classes: list[str]


def npz(
    *,
    root: str | Path,
    train: bool = True,
    name: str = "npz",
    flip: bool = True,
    seed: int = 0,
) -> TensorImages:
    """Return the images in an npz file, see `read`.

    Args:
        root: the file, for both splits; or the folder of `train.npz` and `test.npz` or `val.npz`.
        train: the training images, or the others, which are never mirrored.
        name: of the data set.
        flip: mirror every other training image.
        seed: of what is mirrored.

    Raises:
        UserError: there is no such file, or it holds no such arrays.
    """
    path = Path(root)
    if path.is_dir():
        files = ["train.npz"] if train else ["test.npz", "val.npz"]
        there = [path / file for file in files if (path / file).is_file()]
        path = there[0] if there else path / files[0]
    return TensorImages(name, *read(path), flip=flip and train, seed=seed)


def cifar10(
    *,
    root: str | Path,
    train: bool = True,
    download: bool = False,
    flip: bool = True,
    seed: int = 0,
) -> TensorImages:
    """Return CIFAR-10: 32x32 pixels in colour, 50 000 training and 10 000 test images.

    Args:
        root: the folder that holds (or, with `download`, shall hold) `cifar-10-batches-py`; or one
            with `cifar10_train.npz` and `cifar10_test.npz`, in it or in `cifar10`, see `read`.
        train: the training images, or the test images, which are never mirrored.
        download: fetch the files if they are missing.
        flip: mirror every other training image.
        seed: of what is mirrored.

    Raises:
        UserError: the files are not there and `download` is off, or they are damaged.
    """
    from torchvision.datasets import CIFAR10

    file = f"cifar10_{'train' if train else 'test'}.npz"
    for path in (Path(root, file), Path(root, "cifar10", file)):
        if path.is_file():
            return TensorImages("cifar10", *read(path), flip=flip and train, seed=seed)
    try:
        data = CIFAR10(str(root), train=train, download=download)
    except RuntimeError as error:
        raise UserError(
            f"no CIFAR-10 below data.root={root}: name the folder of cifar-10-batches-py or of "
            f"{file}, or fetch it there with data.download=true"
        ) from error
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2)
    labels = torch.tensor(data.targets)
    return TensorImages("cifar10", pixels, labels, data.classes, flip=flip and train, seed=seed)


def read(path: Path) -> Arrays:
    """Return what an npz file holds.

    Images are `images` (or `arr_0`), (N, H, W) or (N, H, W, 3) uint8; or JPEG files one after the
    other, `jpeg` uint8, of which image i is bytes `offsets[i]` to `offsets[i + 1]`. There may be
    `labels` (or `arr_1`) (N,), else there is one class, and `class_names`, else they are numbers.

    Raises:
        UserError: it does not; the message names the file and the array.
    """
    try:
        # No pickled objects: a file of data must not be able to run code.
        with np.load(path, allow_pickle=False) as file:
            return _parse(path, {key: file[key] for key in file.files})
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: data.root names it, or its folder") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path} ({reason}): an npz file of {_LAYOUT}") from error


def _parse(path: Path, arrays: dict[str, np.ndarray]) -> Arrays:
    images, labels = (
        next((arrays[key] for key in _NAMES[name] if key in arrays), None) for name in _NAMES
    )
    if images is None and {"jpeg", "offsets"} <= arrays.keys():
        images = _decoded(path, arrays["jpeg"], arrays["offsets"])
    if images is None:
        raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}: it needs {_LAYOUT}")
    square = images.ndim in (3, 4) and images.shape[1] == images.shape[2]
    if images.dtype != np.uint8 or not square or images.shape[3:] not in ((), (3,)):
        raise UserError(
            f"images in {path} are {images.dtype} {images.shape}: they must be (N, H, H) or "
            "(N, H, H, 3) uint8"
        )
    if labels is None:
        labels = np.zeros(len(images), np.int64)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"labels in {path} are {labels.dtype} {labels.shape}: they must be whole numbers, one "
            f"for each of {len(images)} images"
        )
    names = arrays.get("class_names", np.arange(labels.max(initial=0) + 1))
    if not 0 <= labels.min(initial=0) <= labels.max(initial=0) < len(names):
        raise UserError(f"labels in {path} are not in 0 ... {len(names) - 1}, as class_names are")
    pixels = torch.from_numpy(images)
    pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
    return Arrays(pixels, torch.from_numpy(labels.astype(np.int64)), [str(each) for each in names])


def _decoded(path: Path, jpeg: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return JPEG files as one array (N, H, W, 3)."""
    images, blob = [], jpeg.tobytes()
    spans = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    shown = progress_bar(spans, desc=path.name, unit="image", delay=2)
    for i, (start, stop) in enumerate(shown):
        try:
            with Image.open(io.BytesIO(blob[start:stop])) as image:
                images.append(np.asarray(image.convert("RGB")))
        except Exception as error:  # Pillow raises whatever it stumbles over in a damaged file
            raise UserError(f"jpeg in {path} is damaged, image {i} cannot be read") from error
    return np.stack(images)
