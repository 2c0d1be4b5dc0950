"""Several reports of `var-evaluate` in one text, with a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from var import atomic
from var.errors import UserError
from var.evaluation.frontier import plot
from var.evaluation.report import Report, beside, differ, read, table
from var.systems.evaluations import EVALUATIONS


def compare(paths: Sequence[Path], out: Path | None = None) -> str:
    """Return reports side by side, how they differ from the first one, and what is published.

    Args:
        paths: of the reports, in the order of the table's rows.
        out: folder for the text, `table.md`, and for `frontier.png` if there is speed; None writes
            nothing.

    Raises:
        UserError: there is no report, one cannot be read, or `out` cannot be written.
    """
    if not paths:
        raise UserError("there is no report to compare: name some in reports")
    names = _names(paths)
    reports = [{"report": n, **read(p)} for n, p in zip(names, paths, strict=True)]
    first = reports[0]
    parts = ["# Figures", table(reports)]
    parts += [
        _section(f"{r['report']} and {first['report']}", _apart, r, first) for r in reports[1:]
    ]
    for one in reports:
        if published := EVALUATIONS.get(one["model"]):
            title = f"{one['report']} and what is published of {one['model']}"
            parts.append(_section(title, beside, one, published))
    if out is not None and any(one.get("speed") for one in reports):
        parts.append(_section("Quality and speed", _picture, out / "frontier.png", reports, names))
    text = "\n\n".join(parts) + "\n"
    if out is not None:
        atomic.write(out / "table.md", text)
    return text


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the reports' folders or, where two are called alike, their paths."""
    names = [path.absolute().parent.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _apart(one: Report, other: Report) -> str:
    return "\n".join(f"- {sentence}" for sentence in differ(one, other))


def _picture(path: Path, reports: Sequence[Report], names: Sequence[str]) -> str:
    plot(path, reports, names)
    return f"![distance over speed]({path.name})"


def _section(title: str, make: Callable[..., str], *args: Any) -> str:
    """Return a section or, in it, why it cannot be made: the others are of use without it."""
    try:
        text = make(*args)
    except UserError as error:
        text = f"Not possible: {error}."
    return f"## {title}\n\n{text}"
