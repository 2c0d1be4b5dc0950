"""The installed commands, each a function.

They import what does the work after the command line was understood, so that `--help`, completion
and a mistyped setting are answered at once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from omegaconf import DictConfig

from var.scripts.command import run


def _command(name: str, home: str = "var.configs") -> Callable[[], None]:
    module = f"var.scripts.{name}"

    def task(cfg: DictConfig) -> None:
        import_module(module).main(cfg)

    task.__module__ = module  # by which Hydra names the job
    return lambda: run(task, name, home)


app = _command("app")
bench = _command("bench", home="var.configs.bench")
calibrate = _command("calibrate")
compare = _command("compare")
convert = _command("convert")
encode = _command("encode")
evaluate = _command("evaluate")
sample = _command("sample")
train = _command("train")
