"""The fenced blocks of the documentation: which there are, and in which language."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Those of `text` and `console` are for reading: what is printed, and what cannot be typed as it is.
LANGUAGES = {"bash", "console", "python", "text", "yaml"}
_FENCE = re.compile(r" *(`{3,}|~{3,}) *(\S*)")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: the file it stands in, from the root.
        line: of its first line of code, from 1.
        language: as its fence says, empty if it does not.
        source: its code, not indented.
    """

    page: str
    line: int
    language: str
    source: str

    @property
    def place(self) -> str:
        """Where it stands, as editors understand it."""
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, also those inside lists and tabs."""
    name, found = page.relative_to(ROOT).as_posix(), list[Block]()
    opened, inside = None, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None:
            opened, inside = _FENCE.match(line), []
        elif line.strip() == opened[1]:
            source = textwrap.dedent("\n".join(inside)) + "\n"
            found.append(Block(name, number - len(inside), opened[2], source))
            opened = None
        else:
            inside.append(line)
    if opened is not None:
        found.append(Block(name, number, "a fence left open", ""))
    return found


def pages() -> dict[str, list[Block]]:
    """Return the blocks of all pages that have some."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {each[0].page: each for file in files if (each := blocks(file))}
