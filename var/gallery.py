"""A table of pictures with names at its edges, as notebooks and pages show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from var.errors import UserError
from var.pixels import to_uint8
from var.png import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 2  # pixels between pictures


def gallery(
    table: Sequence[Tensor],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    width: float = 8.0,
) -> Axes:
    """Return the axes of a new figure that shows pictures, pixel by pixel.

    Args:
        table: the pictures (C, 3, H, W) in [0, 1] of each row.
        rows: a name for each row, or none.
        columns: a name for each column, or none.
        title: of the figure.
        width: of the figure in inches; its height follows.

    Raises:
        UserError: matplotlib is missing, or rows or names do not make a table.
    """
    try:
        from matplotlib import pyplot  # an extra, slow to import, and needed here only
    except ImportError as error:
        raise UserError(
            "a gallery needs matplotlib: pip install 'var-toolkit[notebooks]'"
        ) from error
    _check(table, rows, columns)
    count, _, high, wide = table[0].shape
    pixels = grid(to_uint8(torch.cat([row.cpu() for row in table])), columns=count, gap=_GAP)
    height = width * pixels.shape[1] / pixels.shape[2] + 0.3 * bool(title) + 0.2 * bool(columns)
    axes = pyplot.figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_xticks([(wide + _GAP) * k + wide / 2 for k in range(len(columns))], columns)
    axes.set_yticks([(high + _GAP) * k + high / 2 for k in range(len(rows))], rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    return axes


def _check(table: Sequence[Tensor], rows: Sequence[str], columns: Sequence[str]) -> None:
    shapes = [tuple(row.shape) for row in table]
    if len(set(shapes)) != 1:
        raise UserError(f"rows of a gallery are alike, (C, 3, H, W), got shapes {shapes}")
    for what, names, count in (("rows", rows, len(table)), ("columns", columns, shapes[0][0])):
        if names and len(names) != count:
            raise UserError(f"this gallery has {count} {what}, and {len(names)} names for them")
