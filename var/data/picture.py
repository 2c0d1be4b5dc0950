"""One picture at a time: read from a file or taken as it is, and brought to a size."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from var.data.transforms import to_tensor, upright
from var.errors import UserError
from var.pixels import to_uint8

Picture = str | Path | Image.Image | Tensor
Size = tuple[int, int]  # height, width


def read_image(given: Picture, what: str = "image") -> Tensor:
    """Return a picture as (3, H, W) float32 in [0, 1].

    Files are put upright and in colour as training images are: grey, palettes and 16 bits too,
    and white where they are transparent.

    Args:
        given: a file, an image of Pillow's, or a tensor (3, H, W): uint8, or in [0, 1].
        what: its name in messages.

    Raises:
        UserError: the file is not there or holds no image, the tensor is none, or it is something
            else: arrays of NumPy's become images by `Image.fromarray`.
    """
    if isinstance(given, Tensor):
        return _levels(given, what, (3,))
    if not isinstance(given, str | Path | Image.Image):
        raise UserError(
            f"{what} is of type {type(given).__name__}: give a file, an image of Pillow's "
            "(Image.fromarray) or a tensor"
        )
    try:
        opened = nullcontext(given) if isinstance(given, Image.Image) else Image.open(given)
        with opened as image:
            return to_tensor(upright(image))
    except Exception as error:  # Pillow raises whatever it stumbles over in a damaged file
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else None
        reason = reason or getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {what}={given}: {reason}") from error


def read_mask(given: Picture) -> Tensor:
    """Return where a mask is lighter than middle grey, (H, W) bool.

    Args:
        given: as in `read_image`; but tensors are (H, W) or (1, H, W), and may be bool.

    Raises:
        UserError: see `read_image`.
    """
    if not isinstance(given, Tensor):
        return read_image(given, "mask").mean(dim=0) > 0.5
    given = given[0] if given.ndim == 3 and len(given) == 1 else given
    return _levels(given.float() if given.dtype == torch.bool else given, "mask", ()) > 0.5


def _levels(given: Tensor, what: str, channels: tuple[int, ...]) -> Tensor:
    """Return a tensor (*channels, H, W) as float32 in [0, 1] on the CPU.

    Raises:
        UserError: it is of another shape, holds nothing, or numbers that are no levels.
    """
    *front, height, width = given.shape if given.ndim > 1 else (0, 0)
    if tuple(front) != channels or not height * width:
        wanted = "(3, H, W)" if channels else "(H, W) or (1, H, W)"
        raise UserError(f"{what} must be of shape {wanted}, got {tuple(given.shape)}")
    levels = given.detach().float().cpu() / (255 if given.dtype == torch.uint8 else 1)
    known = given.is_floating_point() or given.dtype == torch.uint8
    if not known or not ((levels >= 0) & (levels <= 1)).all():
        raise UserError(f"{what} must hold levels: uint8, or floating-point numbers from 0 to 1")
    return levels


def fitted(image: Tensor, size: Size) -> Tensor:
    """Return an image (3, H, W) with its shorter edge resized to a frame, the centre cut out.

    By Lanczos and in 8 bits, unless it is of that size already.
    """
    if tuple(image.shape[1:]) == size:
        return image
    return to_tensor(ImageOps.fit(_pillow(image), (size[1], size[0]), Image.Resampling.LANCZOS))


def fitted_mask(mask: Tensor, size: Size) -> Tensor:
    """Return a mask (H, W) cut out of as `fitted` cuts images, True where any of it is."""
    shares = Image.fromarray(mask.float().cpu().numpy())  # not in 8 bits, where thin lines vanish
    shares = ImageOps.fit(shares, (size[1], size[0]), Image.Resampling.BOX)
    return torch.from_numpy(np.array(shares)) > 0


def resized(image: Tensor, size: Size) -> Tensor:
    """Return an image (3, H, W) as a whole in another size, by Lanczos and in 8 bits."""
    if tuple(image.shape[1:]) == size:
        return image
    return to_tensor(_pillow(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().cpu().numpy())
