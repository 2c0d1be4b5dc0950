"""Batches of images as OpenAI's evaluation of guided diffusion knows them: `.npz` files.

`arr_0` holds images (N, H, W, 3) uint8; a reference batch may hold moments of Inception's features
too, `mu` and `sigma`, and those of its spatial features, `mu_s` and `sigma_s`. Both ways images
pass one batch at a time: 50 000 of them take 10 GB.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from var.atomic import replace
from var.errors import UserError
from var.metrics.scores import Moments

IMAGES = "arr_0"


def write(path: Path, shape: tuple[int, int, int], batches: Iterable[Tensor]) -> None:
    """Write images to a file.

    Args:
        path: of the file.
        shape: (N, H, W).
        batches: the N images, (B, 3, H, W) uint8.

    Raises:
        UserError: the file cannot be written.
    """

    def save(part: Path) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (*shape, 3)}
        with (
            zipfile.ZipFile(part, "w", allowZip64=True) as file,
            file.open(f"{IMAGES}.npy", "w", force_zip64=True) as array,
        ):
            np.lib.format.write_array_header_1_0(array, header)
            for images in batches:
                array.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    replace(path, save)


class Batch:
    """The images of a file, or what it says of their moments.

    Args:
        path: of the file.

    Raises:
        UserError: it is missing, damaged, or holds neither.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                names = set(file.files)
            self.shape = self._shape() if IMAGES in names else (0, 0, 0)
            self.moments = self._moments("mu", "sigma") if {"mu", "sigma"} <= names else None
            spatial = {"mu_s", "sigma_s"} <= names
            self.spatial = self._moments("mu_s", "sigma_s") if spatial else None
        except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        if not len(self) and self.moments is None:
            raise UserError(f"{path} holds neither images, {IMAGES}, nor moments, mu and sigma")

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images (B, 3, H, W) uint8, `size` at a time.

        Raises:
            UserError: the file is cut short or damaged.
        """
        try:
            yield from self._batches(size)
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
            raise UserError(f"{self.path} is damaged: {e}") from e

    def _batches(self, size: int) -> Iterator[Tensor]:
        count, height, width = self.shape
        with zipfile.ZipFile(self.path) as file, file.open(f"{IMAGES}.npy") as array:
            _header(array)
            for start in range(0, count, size):
                rows = min(size, count - start)
                flat = np.frombuffer(array.read(rows * height * width * 3), np.uint8)
                images = torch.from_numpy(flat.copy()).view(rows, height, width, 3)
                yield images.permute(0, 3, 1, 2).contiguous()

    def _shape(self) -> tuple[int, int, int]:
        with zipfile.ZipFile(self.path) as file, file.open(f"{IMAGES}.npy") as array:
            shape, transposed, kind = _header(array)
        if len(shape) != 4 or shape[-1] != 3 or transposed or kind != np.uint8:
            raise ValueError(f"{IMAGES} is {kind} {shape}, not uint8 (N, H, W, 3)")
        return shape[0], shape[1], shape[2]

    def _moments(self, mean: str, covariance: str) -> Moments:
        with np.load(self.path, allow_pickle=False) as file:
            return Moments(file[mean].astype(np.float64), file[covariance].astype(np.float64))


def _header(array: object) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(array)  # type: ignore[arg-type]
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read(array)  # type: ignore[arg-type]
