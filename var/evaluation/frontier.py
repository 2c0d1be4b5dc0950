"""Quality against speed: which of several ways to make images no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from var.atomic import replace
from var.errors import UserError
from var.evaluation.report import Report, comparable

# Images per second, and a distance: more of the first and less of the second is better.
Point = tuple[float, float]

_SPEED = "images_per_second"


def frontier(points: Sequence[Point]) -> list[int]:
    """Return which points no other one dominates, the fastest first.

    One dominates another that is no worse in both and better in one; equal ones stay side by side.

    >>> frontier([(10.0, 0.5), (20.0, 0.6), (15.0, 0.7)])
    [1, 0]
    """
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not found or points[i][1] < points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return found


def distance(reports: Sequence[Report]) -> str:
    """Return the Frechet distance that reports of samples, with their speed, can be compared by.

    Raises:
        UserError: they share none, one has no speed, or they are not to be compared.
    """
    for report in reports:
        comparable(reports[0], report)
        if _SPEED not in (report.get("speed") or {}):
            raise UserError(f"the report of {report['model']} has no speed: leave it out")
        devices = reports[0].get("device"), report.get("device")
        if len(set(devices)) > 1:
            raise UserError(
                f"speeds of {devices[0]} and {devices[1]} cannot be compared: measure on one"
            )
    names = [n for n in reports[0]["metrics"] if n == "FID" or n.startswith("FD-")]
    shared = [name for name in names if all(name in report["metrics"] for report in reports)]
    if not shared:
        raise UserError("the reports share no Frechet distance (FD-..., FID): measure one for all")
    return shared[0]


def plot(path: Path, reports: Sequence[Report], labels: Sequence[str]) -> None:
    """Write a picture of the distance of reports over their speed, with the frontier.

    Args:
        path: of the picture.
        reports: of samples, one for each point.
        labels: of the points; those of the frontier, and of the best of each model, are shown.

    Raises:
        UserError: matplotlib is missing, the file cannot be written, or as for `distance`.
    """
    metric = distance(reports)
    try:
        from matplotlib.figure import Figure  # an extra, slow to import, and needed here only
    except ImportError as error:
        raise UserError("a plot needs matplotlib: pip install 'var-toolkit[bench]'") from error
    points = [(r["speed"][_SPEED], r["metrics"][metric]["value"]) for r in reports]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    named = set(edge := frontier(points))
    best = [points[i] for i in edge]
    line = {"color": "0.6", "linestyle": "--", "zorder": 1}
    # In steps: between two of its points the slower one is out of reach.
    axes.plot(*zip(*best, strict=True), drawstyle="steps-post", label="frontier", **line)
    for model in dict.fromkeys(report["model"] for report in reports):
        mine = [i for i, report in enumerate(reports) if report["model"] == model]
        spreads = [reports[i]["metrics"][metric].get("spread") or math.nan for i in mine]
        x, y = zip(*(points[i] for i in mine), strict=True)
        axes.errorbar(x, y, yerr=spreads, fmt="o", capsize=3, label=model)
        named.add(min(mine, key=lambda i: points[i][1]))
    for i in named:  # all of them would hide each other
        axes.annotate(labels[i], points[i], xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(0.15)
    axes.set_xlabel("images per second")
    axes.set_ylabel(metric)
    axes.legend()
    replace(path, lambda part: figure.savefig(part, dpi=150))
