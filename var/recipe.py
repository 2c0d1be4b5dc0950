"""What a run folder's `config.yaml` says: how its parts are built, and what they were made from.

Beside the store, which reads and writes the weights. The file may come from the internet: every key
and value is checked, and it can name classes of this package only, and only modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, cast

import torch
import yaml
from torch import nn

from var.errors import UserError
from var.sampling import Sampling
from var.schedule import Schedule

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """What a model was trained on.

    Attributes:
        name: of the data set.
        classes: their names, in the order of their ids; empty if they have none.
        size: side of its images in pixels.
    """

    name: str = ""
    classes: tuple[str, ...] = ()
    size: int = 0


@dataclass(frozen=True)
class Recipe:
    """How to build a tokenizer and, on top of it, a generator.

    Attributes:
        tokenizer: `_target_`, a class in `var.tokenizers`, and the numbers of its constructor.
        schedule: the groups that the two agree on.
        backbone: the same for a class in `var.models`; None for a tokenizer alone.
        data: what they were trained on.
        sampling: the settings that suit this model, used unless the caller says otherwise.
        decoding: the decoding that suits it, likewise: its `name` and settings, as `decoding=…`
            takes them. It may name a run that works along with this one. None: group by group.
    """

    tokenizer: Spec
    schedule: Schedule
    backbone: Spec | None = None
    data: Data = field(default_factory=Data)
    sampling: Sampling = field(default_factory=Sampling)
    decoding: Spec | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> Recipe:
        """Return the recipe in the YAML `text`; `where` names it in messages.

        Raises:
            UserError: not YAML, a key unknown or missing, a value that does not fit.
        """
        try:
            plain = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
        return cls.of(plain, where)

    @classmethod
    def of(cls, plain: object, where: str) -> Recipe:
        """Return the recipe in a mapping of plain values; `where` names it in messages.

        Raises:
            UserError: a key unknown or missing, a value that does not fit.
        """
        check_keys(
            plain,
            known=[f.name for f in fields(cls)],
            needed=["tokenizer", "schedule"],
            where=where,
        )
        values = cast(Spec, plain)
        backbone, decoding = values.get("backbone"), values.get("decoding")
        return cls(
            tokenizer=_spec(values["tokenizer"], f"{where}: tokenizer"),
            schedule=parse_schedule(values["schedule"], f"{where}: schedule"),
            backbone=None if backbone is None else _spec(backbone, f"{where}: backbone"),
            data=_data(values.get("data") or {}, f"{where}: data"),
            sampling=parse_sampling(values.get("sampling") or {}, f"{where}: sampling"),
            decoding=None if decoding is None else _choice(decoding, f"{where}: decoding"),
        )

    def plain(self) -> dict[str, Any]:
        """Return the recipe as a mapping of plain values; `of` reads it back equal."""
        found = {"tokenizer": self.tokenizer, "backbone": self.backbone}
        found |= {"schedule": written(self.schedule), "data": vars(self.data)}
        found |= {"sampling": vars(self.sampling), "decoding": self.decoding}
        return {name: _plain(value) for name, value in found.items() if value is not None}

    def text(self) -> str:
        """Return the recipe as YAML; `parse` reads it back equal."""
        return yaml.safe_dump(
            self.plain(), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
        )


def parse_sampling(values: Spec, where: str) -> Sampling:
    """Return the sampling settings of a mapping read from YAML or a command line.

    Raises:
        UserError: an unknown key, or a value out of range.
    """
    check_keys(values, known=[f.name for f in fields(Sampling)], where=where)
    try:
        return Sampling(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error


def check_sampling(values: Spec, where: str = "sampling") -> None:
    """Check, before a model is loaded, settings of which those that are None are left to it.

    Raises:
        UserError: an unknown key, or a value out of range.
    """
    parse_sampling({key: value for key, value in values.items() if value is not None}, where)


def build(spec: Spec, where: str, device: torch.device | str = "meta") -> nn.Module:
    """Return the module of a spec with fresh weights; on the meta device shapes, but no memory.

    Raises:
        UserError: the class is none of ours, an argument is unknown, missing or does not fit.
    """
    kind, parameters = _module_class(spec.get("_target_"), where), keywords(spec, where)
    numbers = {key: value for key, value in spec.items() if key != "_target_"}
    check_keys(
        numbers,
        known=list(parameters),
        needed=[name for name, needed in parameters.items() if needed],
        where=f"{where} ({kind.__name__})",
    )
    try:
        with torch.device(device):
            return kind(**numbers)
    except (ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise UserError(f"{where}: {kind.__name__} cannot be built of these: {error}") from error


def keywords(spec: Spec, where: str) -> dict[str, bool]:
    """Return what the class of a spec can be told, and whether it must be.

    Raises:
        UserError: the class is none of ours.
    """
    kind = _module_class(spec.get("_target_"), where)
    return {p.name: p.default is p.empty for p in inspect.signature(kind).parameters.values()}


def check_keys(
    values: object, *, known: Sequence[str], needed: Sequence[str] = (), where: str
) -> None:
    """Check that `values` is a mapping with known keys only, and with all those that are needed.

    Raises:
        UserError: it is not; the message names the keys.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must map names to values, got {type(values).__name__}")
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise UserError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    missing = [key for key in needed if key not in values]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")


def _module_class(target: object, where: str) -> type[nn.Module]:
    home, _, name = str(target).rpartition(".")
    if not home.startswith(("var.tokenizers.", "var.models.")):
        raise UserError(f"{where}: _target_ must be in var.tokenizers or var.models, got {target}")
    try:
        kind = getattr(import_module(home), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: there is no {target} in this version of var") from error
    # What a file of ours imports is not ours: os, subprocess, torch.hub are all within reach.
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == home):
        raise UserError(f"{where}: {target} is not a module of var")
    return kind


def _spec(value: object, where: str) -> Spec:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise UserError(f"{where} must be a mapping with a _target_, got {value}")
    return dict(value)


def _choice(value: object, where: str) -> Spec:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{where} must be a mapping with a name, got {value}")
    return dict(value)


def parse_schedule(value: object, where: str) -> Schedule:
    """Return the schedule of a ladder, or of a raster, read from YAML or a command line.

    Raises:
        UserError: it is none.
    """
    make: Any = Schedule.scales
    if isinstance(value, Mapping) and set(value) == {"raster"}:
        make, value = Schedule.raster, value["raster"]
    try:
        return make(value)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{where} must be a list of sides or (h, w) pairs, or {{raster: side}} or "
            f"{{raster: [h, w]}}: {error}"
        ) from error


def _data(value: Spec, where: str) -> Data:
    check_keys(value, known=[f.name for f in fields(Data)], where=where)
    classes, size = value.get("classes") or (), value.get("size") or 0
    if not isinstance(classes, list | tuple):
        raise UserError(f"{where}: classes must be a list of names, got {classes}")
    if not isinstance(size, int):
        raise UserError(f"{where}: size must be a number of pixels, got {size}")
    return Data(str(value.get("name") or ""), tuple(map(str, classes)), size)


def written(schedule: Schedule) -> Any:
    """Return a schedule as configs say it, a ladder or a raster; `parse_schedule` reads it back.

    Raises:
        ValueError: it is of another kind.
    """
    sides = [h if h == w else [h, w] for h, w in schedule.grids]
    if schedule.is_raster:
        return {"raster": sides[0]}
    if any(cells is not None for cells in schedule.cells):
        raise ValueError("a run folder can hold schedules of whole grids, and rasters")
    return sides


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
