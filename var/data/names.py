"""What classes are called by people, where a data set numbers them or uses codes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from var.errors import UserError


def class_names(path: Path, classes: Sequence[str]) -> list[str]:
    """Return the names that a file gives to classes, in their order.

    The file is `.csv` with a column `name` and one that has the classes, whatever it is called;
    `.json`, class to name; or lines of a class, a space and its name. A name that two classes
    share gets the class behind it: `crane (n02012849)`.

    Args:
        path: of the file.
        classes: as the data set knows them: names of folders, or numbers.

    Raises:
        UserError: it cannot be read, or lacks a class.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        columns = {".csv": _csv, ".json": _json}.get(path.suffix.lower(), _lines)(text)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read data.names={path}: {' '.join(str(error).split())}") from error
    lacking = [[each for each in classes if each not in column] for column in columns]
    if [] not in lacking:
        lost = min(lacking, key=len)[0] if lacking else "a column `name` beside another one"
        raise UserError(f"data.names={path} lacks {lost}: add it")
    column = columns[lacking.index([])]
    names = [str(column[each]) for each in classes]
    count = Counter(names)
    return [
        f"{name} ({each})" if count[name] > 1 else name
        for name, each in zip(names, classes, strict=True)
    ]


# A table from classes to names, or several of which one is that.
def _csv(text: str) -> list[dict[str, str]]:
    rows = [row for row in csv.DictReader(text.splitlines()) if row.get("name")]
    keys = [key for key in rows[0] if key and key != "name"] if rows else []
    return [{row[key]: row["name"] for row in rows} for key in keys]


def _json(text: str) -> list[dict[str, str]]:
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError("it must be an object, class to name")
    return [table]


def _lines(text: str) -> list[dict[str, str]]:
    pairs = (line.strip().partition(" ") for line in text.splitlines())
    return [{key: name.strip() for key, _, name in pairs if name.strip()}]
