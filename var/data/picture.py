"""One picture at a time: read from a file or taken as it is, and brought to a size."""

from __future__ import annotations

from pathlib import Path

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
        given: a file, an image of Pillow's, or a tensor: uint8, or in [0, 1].
        what: its name in messages.

    Raises:
        UserError: the file is not there or holds no image, or the tensor is none.
    """
    if isinstance(given, Tensor):
        if given.ndim != 3 or len(given) != 3:
            raise UserError(f"{what} must be of shape (3, H, W), got {tuple(given.shape)}")
        return given.float().div(1 if given.is_floating_point() else 255)
    if isinstance(given, Image.Image):
        return to_tensor(upright(given))
    try:
        with Image.open(given) as image:
            return to_tensor(upright(image))
    except Exception as error:  # Pillow raises whatever it stumbles over in a damaged file
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else None
        reason = reason or getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {what}={given}: {reason}") from error


def read_mask(given: Picture) -> Tensor:
    """Return where a mask is lighter than middle grey, (H, W) bool.

    Args:
        given: as in `read_image`; or a tensor (H, W), bool or in [0, 1].

    Raises:
        UserError: see `read_image`.
    """
    if isinstance(given, Tensor) and given.ndim == 2:
        given = given.float().expand(3, -1, -1)
    return read_image(given, "mask").mean(dim=0) > 0.5


def fitted(image: Tensor, size: Size) -> Tensor:
    """Return an image (3, H, W) with its shorter edge resized to a frame, the centre cut out.

    By Lanczos and in 8 bits, unless it is of that size already.
    """
    if tuple(image.shape[1:]) == size:
        return image
    return to_tensor(ImageOps.fit(_pillow(image), (size[1], size[0]), Image.Resampling.LANCZOS))


def fitted_mask(mask: Tensor, size: Size) -> Tensor:
    """Return a mask (H, W) cut out of as `fitted` cuts images, True where half of it is."""
    image = _pillow(mask.float().expand(3, -1, -1))
    return to_tensor(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BOX))[0] >= 0.5


def resized(image: Tensor, size: Size) -> Tensor:
    """Return an image (3, H, W) as a whole in another size, by Lanczos and in 8 bits."""
    if tuple(image.shape[1:]) == size:
        return image
    return to_tensor(_pillow(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().cpu().numpy())
