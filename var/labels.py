"""What users call classes, turned into class ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import SupportsIndex, cast

from var.errors import UserError

Label = SupportsIndex | str | None
Labels = Iterable[Label] | Label


def class_ids(labels: Labels, *, classes: Sequence[str], count: int) -> list[int]:
    """Return the class id of each label; -1 is no class.

    Args:
        labels: one or several of them: ids, names in any case, or None and -1 for no class.
        classes: names by id; empty if they have none.
        count: number of classes.

    Raises:
        UserError: there is no such class; for a misspelt name the message suggests the right one.

    >>> class_ids(["Cat", 1, None], classes=["cat", "dog"], count=2)
    [0, 1, -1]
    """
    known, several = numbers(classes), isinstance(labels, Iterable) and not isinstance(labels, str)
    each = cast(Iterable[Label], labels if several else [labels])
    return [_class_id(label, known, classes, count) for label in each]


def numbers(classes: Sequence[str]) -> dict[str, int]:
    """Return the ids of names, as they are written and folded; of equal ones the first.

    A name as it is written counts more: ImageNet has a cardigan and a Cardigan.

    >>> numbers(["cardigan", "Cardigan", "Pug"])["Cardigan"]
    1
    """
    listed = list(reversed(list(enumerate(classes))))
    return {name.casefold(): i for i, name in listed} | {name: i for i, name in listed}


def class_name(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class id: its number if it has none, `none` for -1."""
    if label < 0:
        return "none"
    return classes[label] if label < len(classes) else str(label)


def _class_id(label: Label, known: dict[str, int], classes: Sequence[str], count: int) -> int:
    if label is None:
        return -1
    if isinstance(label, SupportsIndex):
        number = operator.index(label)
        if -1 <= number < count:
            return number
        raise UserError(f"unknown class {number}: ids are 0..{count - 1}, or -1 for none")
    name = str(label)
    for each in (name, name.casefold()):
        if each in known:
            return known[each]
    close = get_close_matches(name, known, n=1)
    if close:
        raise UserError(f"unknown class {label!r}: did you mean {classes[known[close[0]]]!r}?")
    if not classes:
        raise UserError(f"unknown class {label!r}: this model knows ids only, 0..{count - 1}")
    raise UserError(f"unknown class {label!r}: the classes are {_listed(classes)}")


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
