"""What the page offers of a model, and what its values mean: controls follow the model.

A control is a mapping of what it shows: `value`, `visible`, `choices`, `minimum`, `maximum`. What
is not visible is left to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from var import choices
from var.errors import UserError
from var.heads.ode import SOLVERS
from var.pipeline import Pipeline

Controls = dict[str, dict[str, Any]]

# Sampling settings with a control each; of guidance there are two, its first scale and its last.
FILTERS = ("temperature", "top_k", "top_p", "smooth", "steps", "solver")
# Settings of a choice, shown with it only.
PARTS = {
    "window": ("decoding", ("jacobi", "jacobi_published")),
    "closer": ("decoding", ("collaborative",)),
    "switch": ("decoding", ("collaborative",)),
    "budget": ("cache", ("scale",)),
}

# What the page calls them, and the settings of edits.
LABELS = {
    "labels": "Classes",
    "first": "Guidance scale, first group (1: none)",
    "last": "Guidance scale, last group",
    "temperature": "Temperature",
    "top_k": "Top-k (0: all)",
    "top_p": "Top-p (0: all)",
    "smooth": "Smooth (VAR's more_smooth)",
    "steps": "Solver steps",
    "solver": "Solver",
    "decoding": "Decoding",
    "window": "Tokens at a time",
    "closer": "Closing model",
    "switch": "Scales before it takes over",
    "cache": "Cache",
    "budget": "Share of it that is kept",
    "scale": "Share of the frame that it takes",
    "groups": "Groups that stay: scales, or tokens",
}


@dataclass(frozen=True)
class Setting:
    """Which model, and how it draws.

    Attributes:
        model: its name.
        sampling: settings by name, see `var.sampling.Sampling`; the others are as it recommends.
        decoding, cache: `name` and settings, as a pipeline takes them.
    """

    model: str
    sampling: Mapping[str, Any]
    decoding: Mapping[str, Any]
    cache: Mapping[str, Any]


def controls(pipe: Pipeline, companions: Sequence[str]) -> Controls:
    """Return the controls of a model, at what it recommends.

    Args:
        pipe: of the model.
        companions: names of models that share its tokenizer.

    Raises:
        UserError: it is a tokenizer alone.
    """
    sampling, heeds, groups = pipe.settings(), pipe.model.head.heeds, len(pipe.schedule)
    chosen = dict(pipe.run.recipe.decoding or {"name": "sequential"})
    closers = list(companions)
    if (recommended := chosen.get("closer")) is not None:
        closers = [recommended, *(name for name in companions if name != recommended)]
    guided = {"visible": "guidance" in heeds}
    found: Controls = {
        "labels": _classes(pipe),
        "first": guided | {"value": sampling.scales[0]},
        "last": guided | {"value": sampling.scales[1]},
        "decoding": {"choices": _decodings(pipe, closers), "value": chosen["name"]},
        "window": {"minimum": 2, "maximum": 64, "value": chosen.get("window", 16)},
        "closer": {"choices": closers, "value": closers[0] if closers else None},
        "switch": {
            "minimum": 1,
            "maximum": max(2, groups - 1),
            "value": chosen.get("switch", max(1, groups // 2)),
        },
        "cache": {"choices": _caches(pipe), "value": "static"},
        "budget": {"minimum": 0.01, "maximum": 1, "value": 0.1},
    }
    for name in FILTERS:
        value = getattr(sampling, name)
        found[name] = {"visible": name in heeds and not isinstance(value, tuple), "value": value}
    found["solver"]["choices"] = list(SOLVERS)
    found["steps"] |= {"minimum": 1, "maximum": 100}
    for name, (choice, of) in PARTS.items():
        found[name]["visible"] = found[choice]["value"] in of
    return found


def setting(model: str, values: Mapping[str, Any], known: Controls) -> Setting:
    """Return what the values of a model's controls mean.

    Args:
        model: its name.
        values: of all controls by name; those that its own do not show count for nothing. For a
            choice that it does not have, as of the model before it, stands what it recommends.
        known: its controls.

    Raises:
        UserError: one that counts is empty, or out of range.
    """

    def value(name: str) -> Any:
        return _checked(name, values.get(name), known[name])

    sampling = {name: value(name) for name in FILTERS if known[name]["visible"]}
    if known["first"]["visible"]:
        sampling["guidance"] = (float(value("first")), float(value("last")))
    chosen: dict[str, dict[str, Any]] = {}
    for choice in ("decoding", "cache"):
        name = value(choice)
        parts = [part for part, (of, names) in PARTS.items() if of == choice and name in names]
        chosen[choice] = {"name": name} | {part: value(part) for part in parts}
    return Setting(model, sampling, chosen["decoding"], chosen["cache"])


def _checked(name: str, given: Any, control: Mapping[str, Any]) -> Any:
    if given is None:
        raise UserError(f"{LABELS[name]} is empty: give a value")
    if given not in control.get("choices", [given]):
        return control["value"]
    least, most = control.get("minimum", given), control.get("maximum", given)
    if not least <= given <= most:
        raise UserError(f"{LABELS[name]} is {given}: use {least} to {most}")
    return given


def _classes(pipe: Pipeline) -> dict[str, Any]:
    """Return the choice of classes: shown are names, or numbers where there are none."""
    names = pipe.classes or tuple(map(str, range(pipe.class_count)))
    long = len(names) > 100  # ImageNet's are not unique, and its users know them by number
    shown = [(f"{i}: {name}" if long else name, i) for i, name in enumerate(names)]
    return {"choices": [*shown, ("no class", -1)], "value": list(range(len(names)))[:4] or [-1]}


def _decodings(pipe: Pipeline, companions: Sequence[str]) -> list[str]:
    if pipe.schedule.is_raster:
        return ["sequential", "jacobi", "jacobi_published"]
    return ["sequential", "collaborative"] if companions else ["sequential"]


def _caches(pipe: Pipeline) -> list[str]:
    """Return the caches that can be made for a model, the usual one first."""

    def make(name: str) -> Callable[[], object]:
        return lambda: pipe.model.new_cache(choices.cache(pipe, name))

    return sorted(filter(lambda name: _suits(make(name)), choices.CACHES), key="static".__ne__)


def _suits(make: Callable[[], object]) -> bool:
    try:
        make()
    except UserError:
        return False
    return True
