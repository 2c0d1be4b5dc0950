"""What is wrong with a command line that no configuration could be made of, in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

FLAGS = ("--cfg", "--help", "--info", "--multirun", "--quiet", "--shell-completion", "--version")


def described(error: BaseException, config: str, home: str) -> str:
    """Return what Hydra found, in one line, with a suggestion.

    Args:
        error: raised by Hydra while it composed.
        config: name of what it composed, in the package `home`.
    """
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name}: there is no such choice{suggestion(name, error.options)}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: say name=value, and put what has brackets or spaces "
            "in quotes, 'name=[a, b]'"
        )
    if found := re.match(r"Could not override '([^']+)'", text):
        name = found[1]
        return f"there is no setting {name}{suggestion(name, settings(config, home), listed=False)}"
    return text


def unknown_flag(said: str) -> str:
    """Return what argparse said in its last line, with a suggestion."""
    text = said.strip().rpartition("error: ")[2]
    flag = text.rpartition(" ")[2]
    hint = suggestion(flag, FLAGS) if flag.startswith("-") else ""
    return f"{text}{hint}"


def completable(line: str) -> str:
    """Return a line of a shell as Hydra can complete it: without our flags, and without quotes.

    >>> completable("var-sample -q 'labels=[0,1]' dec")
    'var-sample labels=[0,1] dec'
    """
    line = re.sub(r"\s(--quiet|-q)(?=\s)", "", line)
    return re.sub(r"""(?<=\s)(['"])([^'"]*)\1""", r"\2", line)


def suggestion(name: str, known: Iterable[str], *, listed: bool = True) -> str:
    """Return the known names that come close, as the end of a message; or all of them.

    Args:
        name: what is not known.
        known: what is.
        listed: whether all are named where none comes close.

    >>> suggestion("colaborative", ["collaborative", "sequential"])
    ' (did you mean collaborative?)'
    """
    known = sorted(known)
    if close := [*get_close_matches(name, known, n=1, cutoff=0.7), *_elsewhere(name, known)]:
        return f" (did you mean {' or '.join(dict.fromkeys(close))}?)"
    return f" (there are {', '.join(known)})" if listed else " (--help and --cfg job list them)"


def _elsewhere(name: str, known: Collection[str]) -> list[str]:
    """Return the settings of that very name which stand in a group: `guidance`, of `sampling`."""
    return [each for each in known if each.endswith(f".{name}")][:3]


def settings(config: str, home: str) -> set[str]:
    """Return the dotted names of all settings and groups of a config, as it is by default."""
    with initialize_config_module(home, version_base="1.3"):
        whole = compose(config, return_hydra_config=False)
        groups = GlobalHydra.instance().config_loader().list_groups("")
    return {*_dotted(whole), *groups} - {"hydra"}


def _dotted(node: DictConfig, path: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield f"{path}{key}"
        child: Any = None
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            child = node[key]
        if isinstance(child, DictConfig):
            yield from _dotted(child, f"{path}{key}.")
