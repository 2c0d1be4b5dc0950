"""Images as files: grids, and PNGs that remember how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import Tensor

from var.errors import UserError

_KEY = "var"


def grid(images: Tensor, *, columns: int, upscale: int = 1, gap: int = 2) -> Tensor:
    """Return images (B, 3, H, W) side by side as one image (3, H', W'), row by row, on white.

    Args:
        images: uint8, or float in [0, 1].
        columns: images per row, at least 1.
        upscale: whole factor of enlargement, by nearest neighbour.
        gap: pixels between neighbours.
    """
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    white = 1 if images.is_floating_point() else 255
    tiles = images.new_full((rows * columns, channels, height * upscale, width * upscale), white)
    tiles[:count] = images.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    tiles = F.pad(tiles, (0, gap, 0, gap), value=white)
    tiles = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return tiles[:, : tiles.shape[1] - gap, : tiles.shape[2] - gap]


def save_png(path: Path, image: Tensor, settings: Mapping[str, Any]) -> None:
    """Write a uint8 image (3, H, W) with its settings, as JSON in a text chunk; make its folder.

    Raises:
        UserError: the file cannot be written.
    """
    notes = PngImagePlugin.PngInfo()
    notes.add_text(_KEY, json.dumps(settings))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(path, pnginfo=notes)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings that `save_png` stored in a file.

    Raises:
        UserError: the file cannot be read, or holds none.
    """
    try:
        with Image.open(path) as image:
            notes = image.info.get(_KEY)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if notes is None:
        raise UserError(f"{path} holds no settings: it was not made by var, or was edited since")
    return json.loads(notes)
