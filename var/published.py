"""Published checkpoints: original configurations and state dicts in, our pieces out.

The registry only; each system has its own module in `var.systems`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from var.errors import UserError
from var.systems import code, flowar, llamagen, mvar, sjd
from var.systems import var as var_system
from var.systems.base import Checkpoint, Config, Parts, State, System
from var.systems.files import locate, read_state

__all__ = ["CHECKPOINTS", "Checkpoint", "Parts", "blueprint", "build", "load_published"]

_SYSTEMS: dict[str, System] = {
    "var": var_system,
    "code": code,
    "flowar": flowar,
    "llamagen": llamagen,
    "mvar": mvar,
    "sjd": sjd,
}

_BLUEPRINTS: dict[str, Callable[[Config], Parts]] = {
    "var": var_system.blueprint,
    "flowar": flowar.blueprint,
    "llamagen": llamagen.blueprint,
    "mvar": mvar.blueprint,
}

CHECKPOINTS: dict[str, Checkpoint] = {
    name: checkpoint
    for system in _SYSTEMS.values()
    for name, checkpoint in system.CHECKPOINTS.items()
}


def build(system: str, config: Config, state: State) -> Parts:
    """Return model, tokenizer and schedule of a published system: those that `state` holds.

    The parts take the tensors of `state` over without a copy.

    Args:
        system: name of the system.
        config: the original constructor's keywords.
        state: the original state dict; with several models in it, their keys are prefixed.

    Raises:
        UserError: unknown system, or configuration and state do not fit; names the keys.
    """
    if system not in _SYSTEMS:
        raise UserError(f"unknown system {system}; there are: {', '.join(sorted(_SYSTEMS))}")
    return _SYSTEMS[system].build(config, state)


def blueprint(name: str) -> Parts:
    """Return how the parts of a released checkpoint are built: specs and schedule, no weights.

    Args:
        name: a key of `CHECKPOINTS`.

    Raises:
        UserError: unknown name, or its system is known from its files only.
    """
    if name not in CHECKPOINTS:
        raise UserError(f"unknown checkpoint {name}; there are: {', '.join(CHECKPOINTS)}")
    checkpoint = CHECKPOINTS[name]
    if checkpoint.system not in _BLUEPRINTS:
        raise UserError(f"{name} can be had with its published weights only")
    return _BLUEPRINTS[checkpoint.system](checkpoint.config)


def load_published(name: str, folder: str | Path | None = None) -> Parts:
    """Return the parts of a released checkpoint, downloading what is not there yet.

    Args:
        name: a key of `CHECKPOINTS`.
        folder: looked into first, for files under their published names.

    Raises:
        UserError: unknown name; a file is missing, damaged, or not what the name promises.
    """
    if name not in CHECKPOINTS:
        raise UserError(f"unknown checkpoint {name}; there are: {', '.join(CHECKPOINTS)}")
    checkpoint = CHECKPOINTS[name]
    state, paths = dict[str, Tensor](), list[Path]()
    for prefix, file in checkpoint.files.items():
        repository = checkpoint.repositories.get(prefix, checkpoint.repository)
        paths.append(locate(repository, file, Path(folder) if folder else None))
        part = read_state(paths[-1])
        state |= {f"{prefix}/{key}": t for key, t in part.items()} if prefix else part
    try:
        return build(checkpoint.system, checkpoint.config, state)
    except UserError as error:
        raise UserError(f"{' and '.join(map(str, paths))} are not {name}: {error}") from error
