"""Fine-tuning: which parameters of a trained backbone are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from var.errors import UserError
from var.training import lora


def matching(names: Iterable[str], patterns: Sequence[str], where: str) -> list[str]:
    """Return the names that match one or more patterns, such as `blocks.*.mlp.*`.

    Raises:
        UserError: a pattern matches none; the message, which begins with `where`, names some.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise UserError(f"{where}: {pattern} matches nothing; there are {', '.join(some)}, …")
    return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]


def tune(
    model: nn.Module, *, layers: Sequence[str] | None = None, adapters: dict[str, Any] | None = None
) -> None:
    """Freeze a backbone, in place, but for what is chosen.

    Args:
        model: the backbone.
        layers: patterns of the parameters to train; None: all of them, or with adapters none.
        adapters: numbers of low-rank adapters, see `lora.adapt`; None: there are none.

    Raises:
        UserError: a pattern matches nothing, or the package for adapters is missing.
    """
    named = dict(model.named_parameters())
    chosen = [named[name] for name in matching(named, layers or (), "tuning.layers")]
    if adapters is not None:
        numbers = dict(adapters)
        targets = matching(lora.maps(model), numbers.pop("targets"), "tuning.lora.targets")
        lora.adapt(model, targets, **numbers)
    elif layers is not None:
        model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
