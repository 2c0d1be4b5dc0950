"""Published checkpoints: original configurations and state dicts in, our pieces out.

The registry only; each system has its own module in `var.systems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from var.errors import UserError
from var.schedule import Schedule
from var.systems import code, flowar, llamagen, mvar, sjd
from var.systems import var as var_system
from var.systems.base import Checkpoint, Config, Evaluation, Ladder, Parts, Score, State, System
from var.systems.evaluations import EVALUATIONS
from var.systems.files import locate, read_state

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "Evaluation",
    "Parts",
    "Score",
    "as_if_released",
    "blueprint",
    "build",
    "evaluation",
    "load_published",
]

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

# Of systems that follow one rule at every depth, `<system>-d<depth>`.
_OF_DEPTH: dict[str, Callable[[int], Checkpoint]] = {
    "var": var_system.of_depth,
    "mvar": mvar.of_depth,
}
_DEPTH = re.compile(r"[1-9][0-9]{0,2}")

# Of systems that decide scales: the usual ladders by side of the images in pixels.
_LADDERS: dict[str, Mapping[int, Ladder]] = {
    "var": var_system.LADDERS,
    "mvar": var_system.LADDERS,
    "flowar": {256 << k: tuple(2**i for i in range(5 + k)) for k in range(3)},
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


def as_if_released(name: str) -> Checkpoint:
    """Return a released checkpoint, or what one of another depth, or for other images, would be.

    Its configuration is that for released images: `blueprint` puts the other ladder in.

    Args:
        name: a key of `CHECKPOINTS`, or `var-d<depth>` or `mvar-d<depth>` of any depth; behind
            it, if the model decides scales, perhaps `@<pixels>`, the side of its images.

    Raises:
        UserError: unknown name, or no ladder is known for images of that size.
    """
    plain, at, pixels = name.partition("@")
    checkpoint = CHECKPOINTS.get(plain) or _of_depth(plain)
    if not at:
        return checkpoint
    ladders = _LADDERS.get(checkpoint.system)
    if ladders is None:
        raise UserError(
            f"{name}: {plain} decides no scales, so that it is for images of {checkpoint.size} "
            f"pixels only: leave @{pixels} out"
        )
    if pixels not in map(str, ladders):
        sizes = ", ".join(f"{plain}@{size}" for size in ladders)
        raise UserError(f"{name}: no ladder is known for that size; there are: {sizes}")
    return replace(checkpoint, size=int(pixels))


def blueprint(name: str) -> Parts:
    """Return how the parts of a checkpoint are built: specs and schedule, no weights.

    Args:
        name: as for `as_if_released`.

    Raises:
        UserError: likewise, or its system is known from its files only.
    """
    checkpoint = as_if_released(name)
    if checkpoint.system not in _BLUEPRINTS:
        raise UserError(f"{name} can be had with its published weights only")
    parts = _BLUEPRINTS[checkpoint.system](checkpoint.config)
    return _on(_LADDERS[checkpoint.system][checkpoint.size], parts) if "@" in name else parts


def evaluation(name: str) -> Evaluation:
    """Return the published figures of a released checkpoint, and how they came about.

    Args:
        name: a key of `CHECKPOINTS`.

    Raises:
        UserError: none are known of it.
    """
    if name not in EVALUATIONS:
        raise UserError(f"no published figures of {name}; there are of: {', '.join(EVALUATIONS)}")
    return EVALUATIONS[name]


def load_published(name: str, folder: str | Path | None = None) -> Parts:
    """Return the parts of a released checkpoint, downloading what is not there yet.

    Args:
        name: a key of `CHECKPOINTS`.
        folder: looked into first, for files under their published names, or those of
            `var-convert layout=published`.

    Raises:
        UserError: unknown name; a file is missing, damaged, or not what the name promises.
    """
    if name not in CHECKPOINTS:
        raise UserError(f"unknown checkpoint {name}; there are: {', '.join(CHECKPOINTS)}")
    if folder and not Path(folder).is_dir():
        raise UserError(f"files={folder} is not a folder: name that with the files of {name}")
    checkpoint = CHECKPOINTS[name]
    state, paths = dict[str, Tensor](), list[Path]()
    for prefix, file in checkpoint.files.items():
        repository = checkpoint.repositories.get(prefix, checkpoint.repository)
        names = (file,) if isinstance(file, str) else file
        converted = (f"{prefix}.safetensors",) if prefix else ()  # by `var-convert`
        paths.append(locate(repository, (*converted, *names), Path(folder) if folder else None))
        part = read_state(paths[-1])
        state |= {f"{prefix}/{key}": t for key, t in part.items()} if prefix else part
    try:
        return build(checkpoint.system, checkpoint.config, state)
    except UserError as error:
        raise UserError(f"{' and '.join(map(str, paths))} are not {name}: {error}") from error


def _of_depth(name: str) -> Checkpoint:
    system, _, depth = name.rpartition("-d")
    if system not in _OF_DEPTH or not _DEPTH.fullmatch(depth):
        rules = " and ".join(f"{system}-d<depth>" for system in _OF_DEPTH)
        raise UserError(
            f"unknown checkpoint {name}; there are: {', '.join(CHECKPOINTS)}; "
            f"and, without weights, {rules} of depths 1 to 999"
        )
    return _OF_DEPTH[system](int(depth))


def _on(ladder: Ladder, parts: Parts) -> Parts:
    """Return how parts are built for another ladder."""
    model, tokenizer = parts.model_spec, parts.tokenizer_spec
    if tokenizer and "scales" in tokenizer:
        tokenizer = {**tokenizer, "scales": len(ladder)}
    return replace(
        parts,
        model_spec=model and {**model, "ladder": ladder},
        tokenizer_spec=tokenizer,
        schedule=Schedule.scales(ladder),
    )
