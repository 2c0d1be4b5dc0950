"""Editing: images that begin with a given one, of which a part stays (VAR, section 4).

`inpaint` makes an area anew, `outpaint` all but an area, `expand` what lies around a smaller image,
`vary` all but the first groups. Each returns an `Edit`, which `Pipeline` takes as `edit=…`; the
labels are what shall be made, by default no class, as published. With a class in-painting is the
published class-conditional editing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from var.data.picture import Picture, fitted_mask, read_image, read_mask
from var.editing import AreaPainting, Edit, Expansion, Frame, Join, Variation, whole
from var.errors import UserError


def none() -> None:
    """Return no edit: images begin with nothing."""


def inpaint(
    image: Picture,
    mask: Picture | None = None,
    *,
    box: Sequence[float] | None = None,
    blend: str = "tokens",
    paste: bool = False,
    soft: int = 0,
) -> Edit:
    """Return the edit that makes an area of an image anew (VAR, section 4).

    Args:
        image: a file, an image of Pillow's, or (3, H, W) in [0, 1]; of another size than the
            model's, its shorter edge is resized and the centre cut out.
        mask: the area, white on black: likewise, but tensors are (H, W) or (1, H, W), and may be
            bool; in the proportions of the image. Lines thinner than a pixel of the model's image
            are made anew too.
        box: in its place, [y0, x0, y1, x1] as fractions of the model's image, rounded to cells.
        blend, paste, soft: see `Join`.

    Raises:
        UserError: a file cannot be read, there is no area or there are two, or a value makes no
            sense.
    """
    return _painting("inpaint", image, mask, box, Join(blend, paste, soft), anew=True)


def outpaint(
    image: Picture,
    mask: Picture | None = None,
    *,
    box: Sequence[float] | None = None,
    blend: str = "tokens",
    paste: bool = False,
    soft: int = 0,
) -> Edit:
    """Return the edit that leaves an area of an image and makes the rest anew (VAR, section 4).

    The arguments are those of `inpaint`: white is what stays. Lines of black are made anew, however
    thin.
    """
    return _painting("outpaint", image, mask, box, Join(blend, paste, soft), anew=False)


def expand(
    image: Picture,
    *,
    scale: float = 0.5,
    at: Sequence[float] = (0.5, 0.5),
    blend: str = "tokens",
    paste: bool = False,
    soft: int = 0,
) -> Edit:
    """Return the edit that makes what lies around an image, placed smaller in the model's.

    Args:
        image: see `inpaint`; nothing is cut off.
        scale: share of height and width that it may take, above 0 to 1; rounded to cells.
        at: where, down and across: [0, 0] top left, [0.5, 0.5] in the middle, [1, 1] bottom right.
        blend, paste, soft: see `Join`.

    Raises:
        UserError: the file cannot be read, or a value makes no sense.
    """
    if not _fractions([scale], 1) or not scale:
        raise UserError(f"edit.scale={scale}: use a share of the image, above 0 and up to 1")
    if not _fractions(at, 2):
        raise UserError(f"edit.at={at}: use [down,across], each from 0 to 1")
    return Expansion(
        _given("expand", image),
        Join(blend, paste, soft),
        float(scale),
        (float(at[0]), float(at[1])),
    )


def vary(image: Picture, *, groups: int) -> Edit:
    """Return the edit that keeps the first groups of an image's tokens, and draws the others.

    Of scales the first ones are layout and colours, so that images are variations of the given
    one, of another class if there is a label; of single cells they are its upper rows.

    Args:
        image: see `inpaint`.
        groups: how many stay; with 0 images are as if there was none given.

    Raises:
        UserError: the file cannot be read, or `groups` is no whole number.
    """
    return Variation(_given("vary", image), whole("groups", groups))


def _given(name: str, image: Picture | None) -> Tensor:
    if image is None:
        raise UserError(f"edit={name} needs an image: say image=photo.png")
    return read_image(image)


def _painting(
    name: str,
    image: Picture | None,
    mask: Picture | None,
    box: Sequence[float] | None,
    join: Join,
    *,
    anew: bool,
) -> Edit:
    pixels = _given(name, image)
    if (mask is None) == (box is None):
        raise UserError(
            f"edit={name} needs an area, and one only: say mask=mask.png, white on black, or "
            "edit.box=[y0,x0,y1,x1]"
        )
    if mask is None:
        return AreaPainting(pixels, join, partial(_boxed, _box(box), anew))
    return AreaPainting(pixels, join, partial(_masked, _mask(mask, pixels) == anew))


def _box(box: Sequence[float] | None) -> tuple[float, ...]:
    if box is None or not _fractions(box, 4) or box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(
            f"edit.box={box}: use [y0,x0,y1,x1], fractions of the image from 0 to 1, "
            "with y0 < y1 and x0 < x1"
        )
    return tuple(map(float, box))


def _mask(given: Picture, image: Tensor) -> Tensor:
    mask = read_mask(given)
    (height, width), (h, w) = image.shape[1:], mask.shape
    short, (less, more) = min(h, w, height, width), sorted((h * width, w * height))
    if more * short >= less * (short + 1):  # one may be the other, resized to whole pixels
        raise UserError(
            f"the mask has {w} x {h} pixels, the image {width} x {height}: "
            "give a mask of the image's proportions"
        )
    return mask


def _boxed(box: Sequence[float], anew: bool, frame: Frame) -> Tensor:
    """Return what is made anew of a frame (H, W) bool, a box or all but the box.

    Raises:
        UserError: it covers no cell, or, but for less than a cell, all.
    """
    (h, w), (y0, x0, y1, x1) = frame.grid, box
    cells = torch.zeros(h, w, dtype=torch.bool)
    cells[round(y0 * h) : round(y1 * h), round(x0 * w) : round(x1 * w)] = True
    if not cells.any():
        raise UserError(f"edit.box={[*box]} covers none of {h} x {w} cells: use a larger one")
    if cells.all() and (*box,) != (0, 0, 1, 1):
        raise UserError(f"edit.box={[*box]} covers all of {h} x {w} cells: use a smaller one")
    return (cells == anew).repeat_interleave(frame.side, 0).repeat_interleave(frame.side, 1)


def _masked(hole: Tensor, frame: Frame) -> Tensor:
    """Return what is made anew of a frame (H, W) bool.

    Raises:
        UserError: it is all or nothing, but not of the whole mask.
    """
    mine = fitted_mask(hole, frame.size)
    if mine.any() != hole.any() or mine.all() != hole.all():
        raise UserError(
            f"the mask leaves nothing to {'keep' if mine.all() else 'make'} of the centre of the "
            f"image, at the model's {frame.size[1]} x {frame.size[0]} pixels: mark another area"
        )
    return mine


def _fractions(values: Sequence[float], count: int) -> bool:
    """Return whether these are so many numbers from 0 to 1."""
    try:
        return len(values) == count and all(
            not isinstance(value, bool | str) and 0 <= float(value) <= 1 for value in values
        )
    except (TypeError, ValueError):
        return False


# What `edit=…` may name: in configs, and by `name` in mappings.
EDITS: dict[str, Callable[..., Edit | None]] = {
    "expand": expand,
    "inpaint": inpaint,
    "none": none,
    "outpaint": outpaint,
    "vary": vary,
}
