"""Visual autoregressive image generation: tokenizers, next-scale transformers, one sampling loop.

>>> pipe = var.load("fashion-var")                                  # doctest: +SKIP
>>> images = pipe(labels=[0, 1, 2], seed=0, guidance=1.5)           # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var.condition import Condition as Condition
    from var.decoding.collaborative import Collaborative as Collaborative
    from var.decoding.jacobi import Jacobi as Jacobi
    from var.decoding.loop import decide as decide
    from var.decoding.loop import generate as generate
    from var.decoding.sequential import Sequential as Sequential
    from var.edits import expand as expand
    from var.edits import inpaint as inpaint
    from var.edits import outpaint as outpaint
    from var.edits import vary as vary
    from var.errors import UserError as UserError
    from var.pipeline import Pipeline as Pipeline
    from var.pipeline import load as load
    from var.sampling import Sampling as Sampling
    from var.schedule import Schedule as Schedule
    from var.scorers import ClassLogProbability as ClassLogProbability
    from var.search import best_of as best_of

__version__ = "0.1.0"

# Imported on first use: a command's `--help` need not wait for all of them.
_HOMES = {
    "ClassLogProbability": "var.scorers",
    "Collaborative": "var.decoding.collaborative",
    "Condition": "var.condition",
    "Jacobi": "var.decoding.jacobi",
    "Pipeline": "var.pipeline",
    "Sampling": "var.sampling",
    "Schedule": "var.schedule",
    "Sequential": "var.decoding.sequential",
    "UserError": "var.errors",
    "best_of": "var.search",
    "decide": "var.decoding.loop",
    "expand": "var.edits",
    "generate": "var.decoding.loop",
    "inpaint": "var.edits",
    "load": "var.pipeline",
    "outpaint": "var.edits",
    "vary": "var.edits",
}
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'var' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
