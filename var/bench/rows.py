"""The rows of a bench: which combinations there are, and what each is made of.

A grid of lists is multiplied out; single rows come on top. Rows of the same model, number type and
compilation share what is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from var import hub
from var.bench.naive import NaiveCache, naive
from var.bench.stopwatch import Stopwatch
from var.bench.subjects import Combination, Foreign, Subject
from var.devices import PRECISIONS, parse_precision, precision_name
from var.errors import UserError
from var.pipeline import Pipeline, load
from var.recipe import check_keys

# A name, or a mapping of a name and its settings.
Named = str | Mapping[str, Any]

_AXES = ("model", "decoding", "cache", "precision", "compile", "batch")


@dataclass(frozen=True)
class Grid:
    """Which rows there are.

    Attributes:
        model: names of models, as `var.load` takes them.
        decoding, cache: each a name, or a mapping of a name and its settings.
        precision: names of number types, see `parse_precision`.
        compile: whether models are compiled.
        batch: numbers of images.
        naive: whether there is a naive row for each model, precision and batch.
        rows: single rows: values of the axes above, or a function to `call` and its `label`.
    """

    model: Sequence[str]
    decoding: Sequence[Named]
    cache: Sequence[Named]
    precision: Sequence[str]
    compile: Sequence[bool]
    batch: Sequence[int]
    naive: bool = False
    rows: Sequence[Mapping[str, Any]] = ()

    def specs(self) -> Iterator[dict[str, Any]]:
        """Yield what each row is made of, batch by batch, the naive ones first.

        Raises:
            UserError: an axis without values, or a single row with an unknown key.
        """
        axes = {axis: list(getattr(self, axis)) for axis in _AXES}
        if empty := [axis for axis, values in axes.items() if not values]:
            raise UserError(f"{empty[0]}=[] leaves no row: give at least one value")
        for number, row in enumerate(self.rows):
            known = ("call", "label", "precision", "batch") if "call" in row else (*_AXES, "label")
            check_keys(row, known=known, where=f"row {number} of rows")
        batches = axes.pop("batch")
        firsts = {axis: values[0] for axis, values in axes.items()}
        for batch in dict.fromkeys([*batches, *(r["batch"] for r in self.rows if "batch" in r)]):
            if batch in batches:
                yield from self._combinations(axes, batch)
            for row in self.rows:
                if batch in ([row["batch"]] if "batch" in row else batches):
                    yield {**({} if "call" in row else firsts), **row, "batch": batch}

    def _combinations(self, axes: Mapping[str, list[Any]], batch: int) -> Iterator[dict[str, Any]]:
        if self.naive:
            for model, precision in product(axes["model"], axes["precision"]):
                yield {"naive": True, "model": model, "precision": precision, "batch": batch}
        for values in product(*axes.values()):
            yield {**dict(zip(axes, values, strict=True)), "batch": batch}


@dataclass(frozen=True)
class Row:
    """Something to be measured.

    Attributes:
        label: what it is called; rows of one label differ in `batch`.
        batch: number of images.
        model: name of the model; empty for a function from elsewhere.
        precision: name of its number type; None if that is not known.
        subject: what makes the images.
        classes: ids of classes, taken in turn.
        seed: random stream of the first image; image i has `seed + i`.
    """

    label: str
    batch: int
    model: str
    precision: str | None
    subject: Subject
    classes: tuple[int, ...]
    seed: int = 0

    def draw(
        self, watch: Stopwatch | None = None, *, start: int = 0, number: int | None = None
    ) -> Tensor:
        """Return images `start`, `start + 1`, …: a batch, or `number` of them."""
        which = range(start, start + (self.batch if number is None else number))
        ids = [self.classes[i % len(self.classes)] for i in which]
        return self.subject.draw(ids, [self.seed + i for i in which], watch)


class Shelf:
    """Loads each model once.

    Args:
        device: where the weights go.
        files: folder with the files of published checkpoints, see `var.load`.
    """

    def __init__(self, device: torch.device, files: str | None = None) -> None:
        self.device, self.files = device, files
        # Per shelf, not per class: what is loaded goes when the shelf goes.
        self.product = cache(self._product)
        self.naive = cache(self._naive)

    def _product(self, model: str, precision: str, compiled: bool) -> Pipeline:
        """Return a model as its users have it."""
        dtype = PRECISIONS[precision]
        return load(model, device=self.device, dtype=dtype, compile=compiled, files=self.files)

    def _naive(self, model: str, precision: str) -> Pipeline:
        """Return a model as it is without any of our devices."""
        run = hub.find(model, device=self.device, files=self.files)
        return Pipeline(naive(run, PRECISIONS[precision]))


@dataclass(frozen=True)
class Setting:
    """What is the same in all rows.

    Attributes:
        labels: classes, ids or names, taken in turn; None: 0, 1, 2, … as far as the model has any.
        seed: random stream of a batch's first image.
        sampling: settings other than what each model recommends.
        greedy: take the most likely tokens instead of drawing.
    """

    labels: Sequence[int | str] | None = None
    seed: int = 0
    sampling: Mapping[str, Any] | None = None
    greedy: bool = False

    def classes(self, pipe: Pipeline | None) -> tuple[int, ...]:
        """Return the ids of the classes to draw; labels must be ids where there is no model."""
        every = range(pipe.class_count if pipe else 0) or [-1]
        labels = list(every if self.labels is None else self.labels)
        if not labels:
            raise UserError("labels=[] names no class: there is nothing to draw")
        return tuple(pipe.ids(labels) if pipe else map(int, labels))


def make_rows(grid: Grid, setting: Setting, shelf: Shelf) -> list[Row]:
    """Return the rows of a grid, their models loaded.

    Raises:
        UserError: a row cannot be made; the message names it.
    """
    specs = [_checked(spec, shelf.device) for spec in grid.specs()]
    pipes = [_pipe(spec, shelf) for spec in specs]
    some = next((pipe for pipe in pipes if pipe), None)
    return [_row(spec, pipe, some, setting, shelf) for spec, pipe in zip(specs, pipes, strict=True)]


def label(spec: Mapping[str, Any]) -> str:
    """Return what a row is called that has no label of its own.

    >>> label({"model": "var-d16", "decoding": {"name": "jacobi", "window": 2}, "cache": "static",
    ...        "precision": "bf16", "compile": True, "batch": 4})
    'var-d16 jacobi(window=2) static bf16 compiled'
    """
    if "call" in spec:
        return str(spec["call"])
    pieces = ["naive"] if spec.get("naive") else [_name(spec["decoding"]), _name(spec["cache"])]
    tail = ["compiled"] if spec.get("compile") else []
    return " ".join([str(spec["model"]), *pieces, str(spec["precision"]), *tail])


def _checked(spec: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a spec with its label, and its number type by its own name."""
    with _named(spec.get("label") or label(spec)):
        if not isinstance(spec["batch"], int) or spec["batch"] < 1:
            raise UserError(f"batch={spec['batch']}: use whole numbers from 1 on")
        if "precision" in spec:
            dtype = parse_precision(str(spec["precision"]), device)
            spec = {**spec, "precision": precision_name(dtype)}
    return {"label": label(spec), **spec}


def _name(choice: Named) -> str:
    if isinstance(choice, str):
        return choice
    settings = ", ".join(f"{key}={value}" for key, value in choice.items() if key != "name")
    return f"{choice.get('name')}({settings})"


def _pipe(spec: Mapping[str, Any], shelf: Shelf) -> Pipeline | None:
    if "call" in spec:
        return None
    with _named(spec["label"]):
        if spec.get("naive"):
            return shelf.naive(str(spec["model"]), spec["precision"])
        return shelf.product(str(spec["model"]), spec["precision"], bool(spec["compile"]))


def _row(
    spec: Mapping[str, Any],
    pipe: Pipeline | None,
    some: Pipeline | None,
    setting: Setting,
    shelf: Shelf,
) -> Row:
    with _named(spec["label"]):
        subject: Subject
        if pipe is None:
            subject = Foreign(spec["call"], shelf.device)
        else:
            subject = _combination(spec, pipe, setting)
        return Row(
            label=spec["label"],
            batch=spec["batch"],
            model=str(spec.get("model", "")),
            precision=spec.get("precision"),
            subject=subject,
            classes=setting.classes(pipe or some),
            seed=setting.seed,
        )


def _combination(spec: Mapping[str, Any], pipe: Pipeline, setting: Setting) -> Combination:
    naively = spec.get("naive")
    return Combination(
        pipe,
        decoding="sequential" if naively else spec["decoding"],
        cache=NaiveCache if naively else spec["cache"],
        sampling=pipe.settings(**cast(Any, setting.sampling or {})),
        greedy=setting.greedy,
    )


@contextmanager
def _named(row: str) -> Iterator[None]:
    try:
        yield
    except (UserError, ValueError) as error:
        raise UserError(f"row {row}: {error}") from error
