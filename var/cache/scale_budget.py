"""Budgets: how many positions each layer of a compressed cache may hold while each group is read.

Plain tables, so that every length is known before anything is sampled. Section numbers refer to
ScaleKV (arXiv 2505.19602). "Drafters" are layers that need the whole history, "refiners" the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from var.errors import UserError
from var.schedule import Schedule

Row = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """Capacities of one model.

    Attributes:
        schedule: its K groups.
        capacities: K rows with a number for each layer, 0 or more: positions that it may hold
            while that group is read. Before group 0 there is nothing to hold: its row is not used.

    Raises:
        ValueError: rows of different lengths, too many or too few, or negative numbers.

    >>> Budget.shared(Schedule.scales([1, 2, 4, 8]), layers=4, fraction=0.5).means
    (0.0, 1.0, 5.0, 10.0)
    """

    schedule: Schedule
    capacities: tuple[Row, ...]

    def __post_init__(self) -> None:
        if len(self.capacities) != len(self.schedule):
            raise ValueError(
                f"{len(self.capacities)} rows of capacities for {len(self.schedule)} groups"
            )
        lengths = {len(row) for row in self.capacities}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"every row needs a number for each layer, got {sorted(lengths)}")
        if any(number < 0 for row in self.capacities for number in row):
            raise ValueError("a capacity is a number of positions, 0 or more")

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return len(self.capacities[0])

    @property
    def means(self) -> tuple[float, ...]:
        """Mean number of positions that a layer holds while each group is read, K numbers."""
        return tuple(sum(row) / len(row) for row in self.capacities)

    @classmethod
    def shared(
        cls,
        schedule: Schedule,
        layers: int,
        fraction: float,
        drafters: Sequence[tuple[int, int]] = (),
        least: int = 16,
    ) -> Budget:
        """Return a budget whose mean over layers is, at every group, at most a fraction.

        Args:
            schedule: the groups.
            layers: number of layers.
            fraction: of the positions before the last group, above 0 and at most 1.
            drafters: (layer, group) pairs, those in greatest need first. While that group is read,
                the layer keeps all it has, provided that the others, who share the remainder in
                equal parts, are left with `least` positions each. Without any, all layers are
                equal.
            least: number of positions, 0 or more.

        Raises:
            ValueError: the fraction is out of range.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"the fraction to keep must be above 0 and at most 1, got {fraction}")
        mean, rows = fraction * schedule.starts[-2], [(0,) * layers]
        for group in range(1, len(schedule)):
            available = [held + schedule.sizes[group - 1] for held in rows[-1]]
            here = [layer for layer, k in drafters if k == group]
            rows.append(_split(available, mean, here, least))
        return cls(schedule, tuple(rows))

    @classmethod
    def parse(cls, text: str, where: str, schedule: Schedule) -> Budget:
        """Return the budget in a YAML or JSON text, ours or in the published format (section 2).

        Args:
            text: as written by `text`, or one of the published files.
            where: names it in messages.
            schedule: that it must be for.

        Raises:
            UserError: it is neither, or for another ladder.
        """
        try:
            plain = yaml.safe_load(text)
        except yaml.YAMLError as error:
            message = " ".join(str(error).split())
            raise UserError(f"{where} is neither YAML nor JSON: {message}") from error
        try:
            if not isinstance(plain, Mapping):
                raise ValueError("names must be mapped to values")
            if any(str(key).startswith("Scale ") for key in plain):
                return _published(plain, schedule)
            return _own(plain, schedule)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            fault = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{where} is not a budget for this model: {fault}") from error

    def text(self) -> str:
        """Return the budget as YAML; `parse` reads it back equal."""
        plain = {
            "ladder": _ladder(self.schedule),
            "capacities": [list(row) for row in self.capacities],
        }
        return yaml.safe_dump(plain, sort_keys=False, width=100, default_flow_style=None)


def _split(available: Sequence[int], mean: float, drafters: Sequence[int], least: int) -> Row:
    """Return what each layer may hold of what is available to it."""
    layers, total = len(available), int(mean * len(available))
    for number in range(len(drafters), 0, -1):
        chosen = drafters[:number]
        rest = total - sum(available[layer] for layer in chosen)
        share = rest // max(1, layers - number)
        if share >= min(least, int(mean)):
            return tuple(a if i in chosen else min(a, share) for i, a in enumerate(available))
    return tuple(min(a, int(mean)) for a in available)


def _own(plain: Mapping[Any, Any], schedule: Schedule) -> Budget:
    unknown = [str(key) for key in plain if key not in ("ladder", "capacities")]
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}; known are ladder, capacities")
    ladder, rows = plain["ladder"], plain["capacities"]
    if Schedule.scales(ladder) != schedule:
        raise ValueError(f"it is for the ladder {ladder}, not for {_ladder(schedule)}")
    return Budget(schedule, tuple(tuple(_whole(number) for number in row) for row in rows))


def _published(plain: Mapping[Any, Any], schedule: Schedule) -> Budget:
    """Read {"Scale k": {"Block i": 1 for a drafter, "Max": its capacity, "Min": a refiner's}}.

    Scale k, from 1, is the one that uses the cache; before the first that is named all is kept.
    """
    layers = {sum(str(key).startswith("Block ") for key in row) for row in plain.values()}
    if len(layers) != 1:
        raise ValueError(f"every scale needs the same blocks, got {sorted(layers)}")
    blocks, rows, found = layers.pop(), list[Row](), False
    for group, available in enumerate(schedule.starts[:-1]):
        row = plain.get(f"Scale {group + 1}")
        if row is None and found:
            raise ValueError(f"Scale {group + 1} is missing")
        if row is None:
            rows.append((available,) * blocks)
            continue
        found, limits = True, (_whole(row["Min"]), _whole(row["Max"]))
        rows.append(tuple(limits[bool(row[f"Block {i}"])] for i in range(blocks)))
    if not found:
        raise ValueError(f"it names none of the {len(schedule)} scales")
    return Budget(schedule, tuple(rows))


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"a capacity is a whole number, got {number}")
    return number


def _ladder(schedule: Schedule) -> list[int | list[int]]:
    return [h if h == w else [h, w] for h, w in schedule.grids]
