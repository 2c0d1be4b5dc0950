"""Reports of `var-evaluate`: read, side by side, against published figures, and told apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from var.bench.figures import Figures
from var.bench.report import table as markdown
from var.errors import UserError
from var.sampling import Sampling
from var.systems.base import Evaluation

Report = Mapping[str, Any]

FORMAT = 1

# Of a normal distribution: what lies within so many standard deviations of the mean is 95 %.
_DEVIATIONS = 1.96

# Frechet distances of few images come out too large; published ones are of this many.
_BIASED, _ENOUGH = ("FID", "sFID", "rFID"), 50_000

_NEEDED = ("kind", "model", "images", "metrics")
_RESULTS = ("metrics", "speed")
_DIGITS_OF_A_HASH = 12
_SHOWN = {"precision": "dtype"}  # settings that are called like a metric


def read(path: Path) -> Report:
    """Return the report that a file holds.

    Raises:
        UserError: there is none, or it is damaged, or of another format.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the report {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"the report {path} is damaged: measure again ({error})") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise UserError(f"{path} is no report of format {FORMAT}: write it with var-evaluate")
    if missing := [key for key in _NEEDED if key not in report]:
        raise UserError(f"the report {path} is damaged, no {', '.join(missing)}: measure again")
    if not _has_values(report["metrics"]):
        raise UserError(f"the report {path} is damaged, a metric has no value: measure again")
    return report


def row(report: Report) -> Figures:
    """Return a report as a row of a table: settings under their names in configurations, metrics
    as `0.312 ± 0.004 (10 000)`, the number of images in brackets, and speed.
    """
    return {**_settings(report), **_metrics(report), **_speed(report)}


def table(reports: Sequence[Report]) -> str:
    """Return reports as a Markdown table; settings that all of them share are above it."""
    rows = [row(report) for report in reports]
    parts = (_settings, _metrics, _speed)  # and not report by report: settings stand to the left
    names = dict.fromkeys(name for part in parts for report in reports for name in part(report))
    shared = [n for n in _settings(reports[0]) if len({each.get(n) for each in rows}) == 1]
    own = [{name: each.get(name) for name in names if name not in shared} for each in rows]
    above = "; ".join(f"{name}: {rows[0][name]}" for name in shared)
    return "\n\n".join(part for part in (above, markdown(own)) if part)


def summary(report: Report) -> str:
    """Return a report to read: its figures one below the other, then all that they depend on.

    The number of images stands in brackets.
    """
    rows: list[Figures] = [
        {"metric": name, "measured": _measured(report, name)} for name in report["metrics"]
    ]
    rows += [{"metric": name, "measured": f"{each:g}"} for name, each in _speed(report).items()]
    settings = "; ".join(f"{name}: {each}" for name, each in _settings(report).items())
    title = f"{report['model']}: {report['kind']}, {_count(report['images'])} images"
    return "\n\n".join([title, markdown(rows), *_biased(report), settings])


def beside(report: Report, evaluation: Evaluation) -> str:
    """Return measured figures beside published ones, as Markdown, and what sets them apart.

    Raises:
        UserError: one is of samples, the other of reconstructions.
    """
    kind = "generation" if evaluation.sampling else "reconstruction"
    if report["kind"] != kind:
        raise UserError(
            f"the figures published of {report['model']} are of {kind}, the report is of "
            f"{report['kind']}: set mode={kind}"
        )
    differences = _differences(report, evaluation)
    metrics = [score.metric for score in evaluation.scores]
    rows: list[Figures] = [
        {
            "metric": score.metric,
            "published": f"{score.value:g}",
            "source": score.source,
            "measured": _measured(report, score.metric),
            "agrees": _agreement(report, score.metric, score.value),
            "settings differ": "yes" if differences else "no",
        }
        for score in sorted(evaluation.scores, key=lambda score: metrics.index(score.metric))
    ]
    notes = [f"Published figures: {note}." for note in evaluation.notes]
    if differences:
        notes.insert(0, f"Settings differ: {'; '.join(differences)}.")
    notes = [*_biased(report), *notes]
    return "\n\n".join([markdown(rows), "\n".join(f"- {note}" for note in notes)]).strip()


def comparable(a: Report, b: Report) -> None:
    """Check that figures of two reports are of one scale.

    Raises:
        UserError: they are of other references, networks, numbers of images or kinds.
    """
    for key in ("kind", "data", "reference", "network", "images", "size"):
        one, other = a.get(key), b.get(key)
        if one != other:
            raise UserError(
                f"figures of the reports cannot be compared, {key} differs: {_whole(one)} and "
                f"{_whole(other)}; measure both alike"
            )


def differ(a: Report, b: Report) -> list[str]:
    """Return for each metric of two reports, as a sentence, whether they differ.

    Their difference is held against 1.96 times its standard deviation. With equal seeds they have
    more in common than this supposes: what differs then differs all the more.

    Raises:
        UserError: they have no metric in common; see `comparable`.
    """
    comparable(a, b)
    shared = [name for name in a["metrics"] if name in b["metrics"]]
    if not shared:
        raise UserError("the reports have no metric in common: measure one for both")
    return [_verdict(name, a, b) for name in shared]


def figure(metric: Report) -> str:
    """Return a metric with its standard deviation, to the digit that this makes certain.

    >>> figure({"value": 0.31234, "spread": 0.0041})
    '0.312 ± 0.004'
    """
    value, spread = metric["value"], metric.get("spread")
    if not spread or not math.isfinite(spread):
        return f"{value:.4g}"
    digits = -math.floor(math.log10(spread))
    if spread * 10**digits < 2:  # a lone 1 would stand for anything up to twice as much
        digits += 1
    digits = max(0, digits)
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def _has_values(metrics: Any) -> bool:
    each = metrics.values() if isinstance(metrics, dict) else [None]
    return all(isinstance(m, dict) and isinstance(m.get("value"), int | float) for m in each)


def _verdict(name: str, a: Report, b: Report) -> str:
    one, other = a["metrics"][name], b["metrics"][name]
    both = f"{figure(one)} against {figure(other)}"
    if one.get("spread") is None or other.get("spread") is None:
        return f"{name}: {both}, of unknown spread"
    spread = math.hypot(one["spread"], other["spread"])
    if abs(one["value"] - other["value"]) > _DEVIATIONS * spread:
        return f"{name} differs: {both}"
    return f"{name} cannot be told apart at {_count(a['images'])} images: {both}"


def _biased(report: Report) -> list[str]:
    """Return a warning, if one is due, that there are too few images."""
    few = [metric for metric in _BIASED if metric in report["metrics"]]
    if not few or report["images"] >= _ENOUGH:
        return []
    count = f"{_count(report['images'])} images are fewer than {_count(_ENOUGH)}"
    return [f"{', '.join(few)} comes out too large: {count}."]


def _measured(report: Report, name: str) -> str | None:
    metric = report["metrics"].get(name)
    return metric and f"{figure(metric)} ({_count(report['images'])})"


def _agreement(report: Report, name: str, published: float) -> str | None:
    metric = report["metrics"].get(name)
    if metric is None:
        return None
    apart = metric["value"] - published
    if metric.get("spread") is None:
        return f"{apart:+.3g}, spread unknown"
    return "yes" if abs(apart) <= _DEVIATIONS * metric["spread"] else f"no, {apart:+.3g}"


def _differences(report: Report, evaluation: Evaluation) -> list[str]:
    """Return what was not done as for the published figures."""
    pairs: dict[str, tuple[Any, Any]] = {"size": (report.get("size"), evaluation.size)}
    if evaluation.precision:
        pairs["precision"] = report.get("precision"), evaluation.precision
    if evaluation.sampling:
        pairs |= _of_samples(report, evaluation)
    else:  # which images they are, a name does not tell: every folder has its own
        pairs["images"] = report["images"], _ENOUGH
    return [
        f"{name} {_text(ours) or 'unknown'} instead of {_text(theirs)}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def _of_samples(report: Report, evaluation: Evaluation) -> dict[str, tuple[Any, Any]]:
    pairs: dict[str, tuple[Any, Any]] = {
        "reference": ((report.get("reference") or {}).get("name"), evaluation.reference),
        "per_class": (report.get("per_class"), evaluation.per_class),
    }
    if "sampling" not in report:  # of samples in a file
        return pairs | {"sampling": (None, dict(evaluation.sampling))}
    try:
        ours, theirs = Sampling(**report["sampling"]), Sampling(**evaluation.sampling)
    except (TypeError, ValueError) as error:
        raise UserError(f"the report's sampling is of another version: {error}") from error
    for field in fields(Sampling):
        pairs[f"sampling.{field.name}"] = getattr(ours, field.name), getattr(theirs, field.name)
    decoding = report.get("decoding") or {}
    for key, value in (evaluation.decoding or {"name": "sequential"}).items():
        pairs[f"decoding.{key}"] = decoding.get(key), value
    return pairs


def _settings(report: Report) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in report.items():
        if key in (*_RESULTS, "format"):
            continue
        parts = value if isinstance(value, Mapping) else {"name": value}
        for part, each in parts.items():
            name = _SHOWN.get(key, key) if part == "name" else f"{key}.{part}"
            found[name] = _text(each, name)
    return {name: text for name, text in found.items() if text}


def _metrics(report: Report) -> Figures:
    return {name: _measured(report, name) for name in report["metrics"]}


def _speed(report: Report) -> Figures:
    return report.get("speed") or {}


def _whole(value: Any) -> str:
    """Return what tells a reference, a network or a number from another one."""
    if isinstance(value, Mapping):
        return " ".join(_text(each, name) for name, each in value.items())
    return _count(value) if isinstance(value, int) else _text(value)


def _text(value: Any, name: str = "") -> str:
    """Return a setting as in configurations, of hashes the beginning."""
    if not isinstance(value, str):
        return "" if value is None else json.dumps(value)
    return value[:_DIGITS_OF_A_HASH] if name.endswith(("weights", "sha256")) else value


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")
