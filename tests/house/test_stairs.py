"""The stairs: imports go down only, and siblings on one floor do not meet."""

import ast
from collections.abc import Iterator

import pytest

# What is on none of these is on top, where everything may meet.
FLOORS = (
    {"schedule", "random", "errors", "bars"},
    {"sampling", "condition", "atomic", "labels", "pixels", "digests"},
    {"cache", "tokenizers"},
    {"nn"},
    {"heads"},
    {"models"},
    {"decoding", "training", "data", "metrics"},
)
TOP = len(FLOORS)


def imports(source: str) -> Iterator[str]:
    """Yield the names that a module imports: `from a import b` is a.b, `from . import b` is .b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = "." * node.level + (f"{node.module}." if node.module else "")
            yield from (home + alias.name for alias in node.names)


def place(name: str) -> tuple[str, int]:
    """Return the room of a dotted name below `var`, and its floor."""
    room = name.split(".")[1] if "." in name else ""
    return room, next((i for i, rooms in enumerate(FLOORS) if room in rooms), TOP)


def complaint(module: str, name: str) -> str | None:
    """Return what is wrong with `module` importing `name`; None if nothing is."""
    first = name.split(".")[0]
    if first in ("", "tokenizers", "scripts", "configs"):
        return "say var.…: the folder is linked there"
    (here, floor), (there, below) = place(module), place(name)
    if first != "var" or here == there or floor == TOP:
        return None
    if below >= floor:
        return "goes up" if below > floor else "meets a sibling"
    if floor == TOP - 1 and there == "models" and not name.startswith("var.models.base"):
        return "knows a model, not only the contract in var.models.base"
    return None


def complaints(module: str, source: str) -> list[str]:
    found = {name: complaint(module, name) for name in imports(source)}
    return [f"{module} imports {name}: {what}" for name, what in found.items() if what]


def test_imports_go_down_only(sources: dict[str, str]) -> None:
    assert not [line for module, source in sources.items() for line in complaints(module, source)]


def test_every_floor_is_inhabited(sources: dict[str, str]) -> None:
    rooms = {place(module)[0] for module in sources}
    assert not set().union(*FLOORS) - rooms


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("var.schedule", "import var"),
        ("var.schedule", "from var.sampling import Guide"),
        ("var.cache.dense", "from var.tokenizers.canvas import Chain"),
        ("var.tokenizers.residual", "from var import nn"),
        ("var.tokenizers.residual", "from tokenizers.canvas import Chain"),
        ("var.nn.attention", "def f():\n    import var.models.var"),
        ("var.models.var", "from .base import Backbone"),
        ("var.models.var", "from var.store import load"),
        ("var.heads.flow", "from var import Sampling"),
        ("var.decoding.loop", "from var.training import loss"),
        ("var.training.loss", "from var.models.var import VAR"),
    ],
)
def test_a_wrong_step_is_seen(module: str, line: str) -> None:
    assert len(complaints(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("var.heads.flow", "import torch, transformers\nfrom var.sampling import Guide"),
        ("var.heads.flow", "from var.heads.base import Head"),
        ("var.training.loss", "from var.models.base import Backbone\nfrom var.models import base"),
        ("var.pipeline", "from var import store\nfrom var.models.var import VAR"),
    ],
)
def test_a_right_step_is_not(module: str, line: str) -> None:
    assert complaints(module, line) == []
