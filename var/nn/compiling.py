"""Compilation of layers that several models share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn


def compile_methods(
    parts: Iterable[nn.Module], names: Iterable[str], *args: Any, **kwargs: Any
) -> None:
    """Compile some methods of modules of one class, together, by default for any shape.

    Args:
        parts: the modules.
        names: of the methods.
        args, kwargs: for `torch.compile`.
    """
    kwargs.setdefault("dynamic", True)
    parts = list(parts)
    for name in names:
        method = torch.compile(own_code(getattr(type(parts[0]), name)), *args, **kwargs)
        for part in parts:
            setattr(part, name, partial(method, part))


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function with a code object of its own.

    `torch.compile` keeps what it makes by code object, and only so much of it: with one for each
    model, there is more room. (Functions that are called from it and cannot be inlined, as around
    packed weights on a CPU, are still shared; beyond the limit they run as they are, uncompiled.)
    """
    assert isinstance(function, FunctionType)
    twin = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin
