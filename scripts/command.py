"""What all commands share: a Hydra main that ends in one line where the input is at fault."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import var
from var.errors import UserError
from var.scripts import mistakes, slurm

if TYPE_CHECKING:  # torch is imported after the command line was understood, or `--help` answered
    from var.recipe import Recipe

Task = Callable[[DictConfig], None]

_QUIET, _SETTING = {"--quiet", "-q"}, re.compile(r"~|[^=]+=")

FLAGS = """
Flags:
  --cfg job                 everything that can be set, as it is
  --multirun, -m            one run for each combination of a=1,2 b=3,4
  --quiet, -q               no bars, no messages: warnings, errors and results only
  --shell-completion, -sc   eval "$(var-{name} -sc install=bash)": the Tab key knows all settings
  --version, --help, --hydra-help

Ends with 0; with 2, and one line that says what is wrong with the input; with 130 on Ctrl-C; with 1
where the program is at fault."""


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
    missing or of the wrong type, a config that cannot be composed), with 130 on Ctrl-C, and with 1
    and a traceback where the program is at fault.
    """
    reached: list[DictConfig] = []
    terminal, said = sys.stderr, StringIO()

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> None:
        if not reached:  # what Hydra said until now are warnings at most
            sys.stderr = terminal
            terminal.write(said.getvalue())
        reached.append(cfg)
        try:
            check_complete(cfg)
            slurm.adopt()
            task(cfg)
        except (UserError, OmegaConfBaseException, InstantiationException) as error:
            # Caught in here, because Hydra meets any exception of a task with a traceback.
            refuse(config, str(fault(error)))

    main = hydra.main(version_base="1.3", config_path=f"pkg://{home}", config_name=config)
    sys.argv[1:] = translated(sys.argv[1:])
    if line := os.environ.get("COMP_LINE"):
        os.environ["COMP_LINE"] = mistakes.completable(line)
    try:
        with redirect_stderr(said):
            main(guarded)()
    except BrokenPipeError:  # who reads along has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:
        if not reached:
            _explain(stop, said.getvalue(), config, home)
        raise


def _explain(stop: SystemExit, said: str, config: str, home: str) -> None:
    """Say why Hydra ended before there was a config: it was asked for help, or met a mistake."""
    words, found = {*sys.argv[1:]}, stop.__context__
    if any(word.startswith("query=") for word in words):  # a shell asks, in the middle of a line
        return
    if {"--help", "-h"} & words:
        print(FLAGS.format(name=config))
    elif stop.code == 2:
        refuse(config, mistakes.unknown_flag(said))
    elif isinstance(found, HydraException):
        refuse(config, mistakes.described(found, config, home))
    elif found is not None and {"-sc", "--shell-completion"} & words:
        refuse(config, f"{found}: say -sc install=bash, install=zsh or install=fish")
    sys.stderr.write(said)


def refuse(config: str, message: str) -> NoReturn:
    """End the process for a fault of the input, told in one line."""
    plain = message.partition("full_key: ")[0]  # OmegaConf's words to programmers
    sys.stderr.write(f"var-{config}: error: {' '.join(plain.split())}\n")
    sys.exit(2)


def translated(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra takes them; `--version` is answered, and ends the process.

    Settings come before flags, wherever they stood. With `--quiet` there are no bars and no
    messages, but warnings, errors and results.
    """
    if "--version" in arguments:
        print(f"var-toolkit {var.__version__}")
        sys.exit(0)
    if _QUIET & {*arguments}:  # inherited by the processes that are started
        os.environ |= {"TQDM_DISABLE": "1", "VAR_LOG_LEVEL": "WARNING"}
    words = [each for each in arguments if each not in _QUIET]
    return sorted(words, key=lambda word: word.startswith("-") or not _SETTING.match(word))


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


def check_writable(folder: Path, what: str) -> None:
    """Check, before the work, that files can be written to a folder, now there or not.

    Raises:
        UserError: they cannot; `what` names them in the message.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"cannot write {what}: {folder} is not a folder that can be written to")
