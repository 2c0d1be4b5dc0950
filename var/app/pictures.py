"""Pictures to and from the page: uploads that are checked, PNGs that know how they were made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from var.app.job import Drawn
from var.data.picture import Picture, read_image, read_mask
from var.editing import Edit
from var.edits import EDITS
from var.errors import UserError
from var.pixels import to_uint8
from var.png import grid, save_png

FILMED = 4  # images in a film, so that they are large enough to be seen
_TILE = 128  # pixels on the longer side of an image in a film
_CANVAS = 512  # and of a picture that is painted on
_LAYERS = 8


def upload(path: str | Path, what: str = "image", *, megapixels: float) -> Tensor:
    """Return an uploaded picture, (3, H, W) in [0, 1].

    Args:
        path: of the file.
        what: its name in messages.
        megapixels: that are taken at most. Packed, many more fit into a small file.

    Raises:
        UserError: it is no picture, damaged, or too large.
    """
    path = Path(path)
    _check_size(path, what, megapixels)
    try:
        return read_image(path, what)
    except UserError as error:  # where it lies here is nothing that its owner knows
        raise UserError(str(error).replace(str(path), path.name)) from error


def canvas(image: Tensor) -> Tensor:
    """Return a picture (3, H, W) in [0, 1] as it is painted on: uint8, of 512 pixels at most."""
    ratio = _CANVAS / max(image.shape[1:])
    size = [max(1, round(ratio * edge)) for edge in image.shape[1:]]
    mode = "nearest" if ratio > 1 else "area"
    return to_uint8(F.interpolate(image[None], size=size, mode=mode)[0])


def painted(layers: Sequence[str | Path], *, megapixels: float) -> Tensor | None:
    """Return where anything was painted on layers, (H, W) bool; None if nothing was.

    Args:
        layers: files with transparency.
        megapixels: that each may have.

    Raises:
        UserError: they are too large, too many, unlike in size, or no pictures.
    """
    if len(layers) > _LAYERS:
        raise UserError(f"{len(layers)} layers are painted on: up to {_LAYERS} are taken")
    marks = [_mark(Path(layer), megapixels) for layer in layers]
    if len({mark.shape for mark in marks}) > 1:
        raise UserError("the layers that are painted on differ in size: upload the picture again")
    if not any(mark.any() for mark in marks):
        return None
    return torch.from_numpy(np.logical_or.reduce(marks))


def edit(
    kind: str,
    image: Picture | None,
    drawn: Tensor | None,
    mask: Tensor | None,
    settings: Mapping[str, Any],
) -> tuple[Edit, dict[str, Any]]:
    """Return an edit, and in words what it is.

    Args:
        kind: its name in `var.edits`.
        image: what it begins with.
        drawn: the area as it was painted, (H, W) bool.
        mask: or as it was uploaded, white on black, (3, H, W) in [0, 1].
        settings: of the edit.

    Raises:
        UserError: there is no image, no area or two of them, or a value makes no sense.
    """
    if image is None:
        raise UserError("there is no picture yet: upload one, or drop it onto the frame")
    words = {"name": kind, "image": "uploaded", **settings}
    if kind in ("inpaint", "outpaint"):
        settings = {**settings, "mask": _area(drawn, mask)}
        words["mask"] = "painted" if mask is None else "uploaded"
    made = EDITS[kind](image, **settings)
    assert made is not None
    return made, words


def _area(drawn: Tensor | None, mask: Tensor | None) -> Tensor:
    if mask is None:
        if drawn is None:
            raise UserError("no area is marked: paint it onto the picture, or upload a mask")
        return drawn
    if drawn is not None:
        raise UserError("two areas are marked: remove the mask, or what is painted on the picture")
    white = read_mask(mask.mean(dim=0))
    if not white.any():
        raise UserError("the mask marks nothing: white is what counts, and it is all black")
    return white


def _mark(path: Path, megapixels: float) -> np.ndarray:
    _check_size(path, "layer", megapixels)
    try:
        with Image.open(path) as layer:
            return np.array(layer.convert("RGBA").getchannel("A")) > 0
    except Exception as error:  # whatever Pillow stumbles over
        raise UserError("cannot read what is painted: upload the picture again") from error


def _check_size(path: Path, what: str, megapixels: float) -> None:
    """Check how many pixels a file says it has; if it is no picture, reading it will tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as header:
                width, height = header.size
        size = f"{width} x {height}" if width * height > megapixels * 1e6 else ""
    except Image.DecompressionBombError:
        size = "far too many"
    except Exception:  # Pillow raises whatever it stumbles over
        size = ""
    if size:
        raise UserError(
            f"{what} {path.name} has {size} pixels: up to {megapixels:g} million are taken, "
            "make it smaller"
        )


def film(frames: Sequence[Tensor]) -> Tensor:
    """Return images (B, 3, H, W) uint8 as they form, (3, H', W'): each in a row, coarse to fine.

    The first four; enlarged, or made smaller, for eyes to follow.
    """
    rows = torch.stack([frame[:FILMED] for frame in frames], dim=1)
    steps, (height, width), flat = rows.shape[1], rows.shape[-2:], rows.flatten(0, 1)
    if (times := _TILE // max(height, width)) >= 1:
        return grid(flat, columns=steps, upscale=times)
    ratio = _TILE / max(height, width)
    small = F.interpolate(flat.float(), scale_factor=ratio, mode="area").round().to(torch.uint8)
    return grid(small, columns=steps)


def save(drawn: Drawn, folder: Path) -> tuple[list[Path], Path]:
    """Write what is drawn as PNGs with its settings: each image, and all of them as one grid.

    Returns:
        paths of the images, and of the grid.
    """
    images, model = drawn.frames[-1], Path(drawn.notes["model"]).name
    paths = []
    for index, image in enumerate(images):
        note = drawn.note(index)
        paths.append(folder / f"{model}-class{note['labels'][0]}-seed{note['seed']}.png")
        save_png(paths[-1], image, note)
    sheet = folder / f"{model}-seed{drawn.notes['seed']}-grid.png"
    columns = drawn.notes["number"] if drawn.notes["number"] > 1 else len(images)
    save_png(sheet, grid(images, columns=columns), drawn.notes)
    return paths, sheet


def shown(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W) uint8 as Gradio takes it, (H, W, 3)."""
    return image.permute(1, 2, 0).contiguous().numpy()
