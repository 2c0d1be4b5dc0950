"""The figures of a bench: one mapping of column to value per row of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from var.bench.machine import Rate, best
from var.bench.measure import Result
from var.bench.stopwatch import STAGES, Stopwatch
from var.errors import UserError
from var.metrics.images import psnr

Figures = Mapping[str, str | float | None]

# More than any ladder has, fewer than tokens of an image.
_MOST_GROUPS = 32

_BASELINES = {
    "batch": lambda row: (row.batch,),
    "same": lambda row: (row.batch, row.model, row.precision),
}


def check_baseline(choice: str) -> None:
    """Check that there is such a choice of baselines.

    Raises:
        UserError: there is not.
    """
    if choice not in _BASELINES:
        raise UserError(f"baseline={choice}: use {' or '.join(_BASELINES)}")


def baselines(results: Sequence[Result], choice: str = "batch") -> list[Result]:
    """Return what each result is compared with: the first one of its kind.

    Args:
        results: of a bench.
        choice: `batch`: the first row of the same batch; `same`: of the same batch, model and
            number type.
    """
    kind = _BASELINES[choice]
    return [next(r for r in results if kind(r.row) == kind(result.row)) for result in results]


def summary(
    results: Sequence[Result], rates: Sequence[Rate], choice: str = "batch"
) -> list[Figures]:
    """Return the figures of each row; times in ms, memory in MB, ratios are baseline / row."""
    pairs = zip(results, baselines(results, choice), strict=True)
    return [_row(result, base, rates) for result, base in pairs]


def scales(results: Sequence[Result], choice: str = "batch") -> list[Figures]:
    """Return the figures of each group of each row: times in ms, caches in MB, equal tokens.

    Rows of images of many groups, single tokens, are left out.
    """
    found: list[Figures] = []
    for result, base in zip(results, baselines(results, choice), strict=True):
        if result.fault or not result.watches:
            continue
        if max((group for _, group in result.watches[0].laps), default=0) >= _MOST_GROUPS:
            continue
        equal = agreement(result, base)
        for group in sorted({group for _, group in result.watches[0].laps}):
            row: dict[str, str | float | None] = {
                "row": result.row.label,
                "batch": result.row.batch,
                "scale": group,
            }
            for stage in STAGES[:-1]:
                row[f"{stage} ms"] = _ms([w.laps.get((stage, group), 0.0) for w in result.watches])
            held = result.watches[0].held.get(group)
            row["cache MB"] = None if held is None else held / 1e6
            row["agreement"] = equal[group] if equal and group < len(equal) else None
            found.append(row)
    return found


def agreement(result: Result, base: Result) -> list[float] | None:
    """Return the share of equal tokens in each group; None where there is nothing to compare."""
    if not (result.watches and base.watches):
        return None
    ours, theirs = result.watches[0].tokens, base.watches[0].tokens
    if not ours or [t.shape for t in ours] != [t.shape for t in theirs]:
        return None
    if any(t.is_floating_point() for t in ours):
        return None
    pairs = zip(ours, theirs, strict=True)
    return [float((a.cpu() == b.cpu()).float().mean()) for a, b in pairs]


def likeness(images: Tensor | None, others: Tensor | None) -> float | None:
    """Return the PSNR of images (B, 3, H, W) against others, in dB; infinite if they are equal."""
    if images is None or others is None or images.shape != others.shape:
        return None
    if torch.equal(images, others):
        return math.inf
    metric = psnr()
    metric.update(images, others)
    return float(metric.compute())


def ratio(base: Sequence[float], own: Sequence[float]) -> float | None:
    """Return the median of `base / own`, round by round, so that what slows both drops out."""
    rounds = [b / o for b, o in zip(base, own, strict=False) if o > 0]
    return median(rounds) if rounds else None


def _row(result: Result, base: Result, rates: Sequence[Rate]) -> Figures:
    row, totals = result.row, result.totals
    figures: dict[str, str | float | None] = {"row": row.label, "batch": row.batch}
    if result.fault or not totals:
        return {**figures, "note": result.fault or "not measured"}
    seconds = median(totals)
    figures["ms"] = _ms(totals)
    figures["min"], figures["max"] = 1e3 * min(totals), 1e3 * max(totals)
    figures["images/s"] = row.batch / seconds
    figures["ratio"] = ratio(base.totals, totals)
    for stage in STAGES:
        own, theirs = _stage(result.watches, stage), _stage(base.watches, stage)
        figures[f"{stage} ms"] = _ms(own) if any(own) else None
        figures[f"{stage} ratio"] = ratio(theirs, own)
    known = [w for w in result.watches if w.tokens]
    figures["calls"] = float(known[0].calls) if known else None
    figures["cache MB"] = max((w.cached for w in known), default=0) / 1e6 if known else None
    figures["peak MB"] = result.peak / 1e6
    equal = agreement(result, base)
    figures["agreement"] = _mean(equal, [t.numel() for t in known[0].tokens]) if equal else None
    figures["psnr dB"] = likeness(result.images, base.images)
    if result.distance is not None:
        figures["fd"] = result.distance
    if result.flops == 0:  # of code that PyTorch does not see
        return figures
    figures["TFLOP"] = result.flops / 1e12
    figures["% of rate"] = 100 * result.flops / seconds / best(rates, row.precision)
    return figures


def _stage(watches: Sequence[Stopwatch], stage: str) -> list[float]:
    return [watch.total(stage) for watch in watches]


def _ms(seconds: Sequence[float]) -> float:
    return 1e3 * median(seconds)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
