"""The list of images that a run had to do without."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from var.atomic import write

UNUSABLE = "unusable.csv"


def write_unusable(path: Path, unusable: Mapping[str, str]) -> None:
    """Write files and why they are unusable as a table of `path` and `reason`, sorted, in one step.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([("path", "reason"), *sorted(unusable.items())])
    write(path, text.getvalue())


def read_unusable(path: Path) -> dict[str, str]:
    """Return what `write_unusable` wrote; nothing if there is no such file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}
