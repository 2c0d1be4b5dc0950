"""What all commands share: a Hydra main that ends in one line where the input is at fault."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from var.errors import UserError
from var.recipe import Recipe, parse_sampling
from var.scripts import slurm

Task = Callable[[DictConfig], None]


def command(config: str, home: str = "var.configs") -> Callable[[Task], Callable[..., None]]:
    """Make a task the command `var-<config>`, configured by `<config>.yaml` in the package `home`.

    Called with a config the result is the task itself, and raises as it does. Called without, it
    is `run`.
    """

    def decorate(task: Task) -> Callable[..., None]:
        @functools.wraps(task)
        def main(cfg: DictConfig | None = None) -> None:
            if cfg is None:
                run(task, config, home)
            else:
                task(cfg)

        return main

    return decorate


def run(task: Task, config: str, home: str) -> None:
    """Run a task on what the command line says.

    The process ends with status 2 and one line where the input is at fault (a `UserError`, a value
    missing or of the wrong type), with 2 and Hydra's message if the config cannot be composed, with
    130 on Ctrl-C, and with 1 and a traceback where the program is at fault.
    """
    reached: list[DictConfig] = []

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> None:
        reached.append(cfg)
        try:
            check_complete(cfg)
            slurm.adopt()
            task(cfg)
        except (UserError, OmegaConfBaseException, InstantiationException) as error:
            # Caught in here, because Hydra meets any exception of a task with a traceback.
            sys.stderr.write(f"var-{config}: error: {' '.join(str(fault(error)).split())}\n")
            sys.exit(2)

    main = hydra.main(version_base="1.3", config_path=f"pkg://{home}", config_name=config)
    try:
        main(guarded)()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:
        sys.exit(2 if stop.code == 1 and not reached else stop.code)


def check_complete(cfg: DictConfig) -> None:
    """Check that no value is left open.

    Raises:
        UserError: one is; the message names it.
    """
    missing = sorted(_missing(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)} must be given: say {missing[0]}=…")


def _missing(node: DictConfig, path: str = "") -> Iterator[str]:
    # Not `OmegaConf.missing_keys`, which stumbles over values that refer to missing ones.
    for key in node:
        if OmegaConf.is_interpolation(node, key):
            continue
        if OmegaConf.is_missing(node, key):
            yield f"{path}{key}"
        elif isinstance(node[key], DictConfig):
            yield from _missing(node[key], f"{path}{key}.")


def fault(error: Exception) -> Exception:
    """Return what the user did wrong, from inside Hydra's report on an object it could not build.

    An exception that does not speak of the input, but of a fault of ours, is raised as it is.
    """
    if not isinstance(error, InstantiationException):
        return error
    if isinstance(error.__cause__, UserError | ValueError):
        return error.__cause__
    raise error


def made(node: Any) -> Any:
    """Return the object that a config node describes by its `_target_`.

    Raises:
        UserError: as raised while the object was made; Hydra would bury it.
    """
    try:
        return hydra.utils.instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def named(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a choice of a config as `Pipeline` takes it: by name, with its settings."""
    settings = {k: v for k, v in node.items() if not k.startswith("_")}
    return {"name": node["_target_"].rpartition(".")[2], **settings}


def named_decoding(node: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the decoding of a config, by name; what is recommended as what it stands for."""
    chosen = named(node)
    recommended = chosen["name"] == "recommended"
    return dict(recipe.decoding or {"name": "sequential"}) if recommended else chosen


def check_least(options: object, least: Mapping[str, int]) -> None:
    """Check, before the work, that numbers are not too small; None passes.

    Args:
        options: what has the numbers as attributes.
        least: the smallest value of each, by name.

    Raises:
        UserError: one is; the message names it.
    """
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise UserError(f"{name} must be {lowest} or more, got {value}")


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Check, before a model is loaded, settings of which those that are None are left to it.

    Raises:
        UserError: a value is out of range.
    """
    parse_sampling({k: v for k, v in settings.items() if v is not None}, "sampling")


def check_writable(folder: Path, what: str) -> None:
    """Check, before the work, that files can be written to a folder, now there or not.

    Raises:
        UserError: they cannot; `what` names them in the message.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write {what}: {folder} is not a folder that can be written to")
