"""The report of a bench: Markdown to read, CSV to go on with, a plot to look at."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from var.atomic import replace
from var.bench.figures import Figures
from var.bench.machine import Rate
from var.bench.stopwatch import STAGES

_NOTES = """\
`ms` is the median over rounds in which every row had its turn, `min` and `max` are the extremes.
Ratios are baseline / row, medians of the rounds' ratios: above 1 is faster. The baseline of a row
is {baseline}. Stages are timed in runs of their own. `cache MB` is what the caches held at most
between two turns (dense and static ones hold the last group too, which nobody reads any more; scale
lets it go), `peak MB` the most memory of an uncaptured run beyond what was there before it;
`agreement` the share of the baseline's tokens that were drawn here too, `% of rate` the share of
the best rate above of the row's number type (of all, where that is not known), `calls` the passes
of a model in a run. Compiled rows on
CUDA replay graphs where the cache is static and stays in place: not if a decoding gives it back."""
_TRAINING = """\
A step is forward pass, backward pass and AdamW; encoding is not part of it. `ms` is the median over
rounds in which every row had its turn. Shares are row / first row of the same model, precision and
batch: below 1 is faster, or smaller. `peak MB` is the most memory of the first two steps beyond the
weights: gradients, moments, activations and scratch. `loss difference` is the largest one of all
rounds: rows begin with the same weights and take the same steps."""
_WHICH = {
    "batch": "the first one of the same batch",
    "same": "the first one of the same batch, model and precision",
}


def markdown(
    *,
    machine: str,
    rates: Sequence[Rate],
    settings: str,
    rows: Sequence[Figures],
    scales: Sequence[Figures],
    baseline: str = "batch",
) -> str:
    """Return the whole report.

    Args:
        machine: what was measured on.
        rates: of the machine.
        settings: of the bench, as YAML.
        rows: figures of the rows.
        scales: figures of the rows' groups.
        baseline: what rows were compared with, see `var.bench.figures.baselines`.
    """
    measured: list[Figures] = [
        {"product": r.name, "precision": r.precision, "TFLOP/s": r.flops / 1e12} for r in rates
    ]
    parts = [
        "# Speed and memory",
        f"Machine: {machine}.",
        table(measured),
        "## Rows",
        table(rows),
        _NOTES.format(baseline=_WHICH[baseline]),
        "## Scales",
        table(scales),
        "## Settings",
        f"```yaml\n{settings.strip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def training(*, machine: str, settings: str, rows: Sequence[Figures]) -> str:
    """Return the report of a bench of training steps; arguments as in `markdown`."""
    parts = ["# Training steps", f"Machine: {machine}.", table(rows), _TRAINING, "## Settings"]
    return "\n\n".join([*parts, f"```yaml\n{settings.strip()}\n```"]) + "\n"


def table(rows: Sequence[Figures]) -> str:
    """Return rows as a Markdown table, its columns aligned.

    >>> print(table([{"row": "a", "ms": 12.345}, {"row": "b", "note": "failed"}]))
    | row | ms    | note   |
    | --- | ----- | ------ |
    | a   | 12.35 |        |
    | b   |       | failed |
    """
    names = columns(rows)
    lines = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(names))]
    lines.insert(1, ["-" * width for width in widths])
    cells = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) if rows else ""


def columns(rows: Sequence[Figures]) -> list[str]:
    """Return the columns of rows, in order, without those that are empty throughout."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(row.get(name) is not None for row in rows)]


def brief(row: Figures) -> Figures:
    """Return the figures of a row that fit on a screen: no extremes, no ratios of stages."""
    left_out = {"min", "max", "TFLOP", *(f"{stage} ratio" for stage in STAGES)}
    return {name: value for name, value in row.items() if name not in left_out}


def comma_separated(rows: Sequence[Figures]) -> str:
    """Return rows as CSV, in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot(path: Path, rows: Sequence[Figures]) -> None:
    """Write a picture of what the stages of each row take.

    Raises:
        ImportError: matplotlib is not installed.
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # an extra, slow to import, and needed here only

    measured = [row for row in rows if row.get("ms") is not None]
    names = [f"{row['row']}, batch {row['batch']}" for row in measured]
    figure = Figure(figsize=(10, 1 + 0.4 * max(1, len(measured))), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(measured)
    for stage in STAGES:
        widths = [_per_image(row, f"{stage} ms") for row in measured]
        axes.barh(names, widths, left=left, label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.plot([_per_image(row, "ms") for row in measured], names, "k|", ms=14, label="total")
    axes.set_xlabel("ms per image")
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    replace(path, lambda part: figure.savefig(part, dpi=150))


def _per_image(row: Figures, name: str) -> float:
    return float(row.get(name) or 0.0) / float(row["batch"] or 1)


def _text(value: str | float | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return "inf" if math.isinf(value) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
