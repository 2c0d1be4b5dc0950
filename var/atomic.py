"""Files that are written in one step: the old one is there, or the new one, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from var.errors import UserError


def write(path: Path, text: str) -> None:
    """Write a file in one step: it holds the old text or the new one, whatever happens.

    Raises:
        UserError: it cannot be written.
    """
    replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, blob: bytes) -> None:
    """Write a file in one step, and to disk.

    Raises:
        UserError: it cannot be written.
    """

    def flushed(part: Path) -> None:
        with part.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())

    replace(path, flushed)


def replace(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file under another name, then move it to its place; make its folder.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(part)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
