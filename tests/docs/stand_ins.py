"""What blocks of the documentation are run with, where they ask for a GPU, a cluster or days.

Commands are made smaller, they are not left out. Each stand-in says why it is there; one that no
page needs any more fails `test_blocks.py`.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from time import sleep
from urllib.request import urlopen

import pytest

from tests.docs import things
from tests.docs.pages import ROOT
from tests.installed import commands

Make = Callable[[Path], None]

# What a reader has, by the name that pages give it: made before a page that names it is run.
THINGS: dict[str, Make] = {
    "DIR": things.data,
    "IMAGENET": things.folders,
    "VIRTUAL_imagenet256_labeled.npz": things.batch,
    "fashion_mnist_cnn.safetensors": things.network,
    "flan-t5.safetensors": things.text_features,
    "mask.png": things.mask,
    "photo.png": things.photo,
    "photos": things.few,
    "scripts/demo.sh": things.script,
    "scripts/test.sh": things.script,
    ".venv/bin/activate": things.empty,
}

# (pattern, what takes its place, why): in the code of all blocks.
WORDS = [
    (r"device=(\"?)cuda\b", r"device=\1cpu", "no GPU is needed for tests"),
    (r"hydra/launcher=slurm", "", "no cluster; tests/scripts/test_slurm.py has the launcher"),
    (r"hydra\.launcher\.\w+=\w+", "", "likewise"),
    (r"compile([:=])true", r"compile\1false", "tests/models/test_compile.py takes minutes"),
    (r"batch:4", "batch:1", "four times the work"),
    (r"in 256 512 1024", "in 256", "ten times as many tokens"),
    (r"steps, batch = 1000, 128", "steps, batch = 20, 16", "a minute"),
]

_STEPS = (
    "trainer.steps=2 trainer.batch_size=2 trainer.accumulation=1 trainer.warmup_steps=0 "
    "trainer.checkpoint_every=2 trainer.preview_every=0 trainer.precision=fp32 "
    "evaluation.images=8 evaluation.batch_size=8"
)
_POINTS = "trainer.steps=6 trainer.checkpoint_every=6 trainer.log_every=1"
_NEXT_SCALE = "backbone.depth=1 backbone.width=64 backbone.heads=1 backbone.drop_path=0"
_FLOW = (
    "backbone.encoder_depth=1 backbone.decoder_depth=1 backbone.width=32 backbone.heads=2 "
    "backbone.head_depth=1 backbone.head_width=32"
)
_RASTER = "backbone.depth=1 backbone.width=32 backbone.heads=2 backbone.hidden=48"
_PIXELS = "tokenizer.width=4 tokenizer.blocks=1 tokenizer.groups=2"
_JUDGE = "objective.adversarial.discriminator.width=8"
# (command, pattern of what is behind it, settings that it ends with, why)
SETTINGS = [
    ("train", "", _STEPS, "days become two steps"),
    ("train", r"experiment=m?var-d", _NEXT_SCALE, "of the kind, not of the size"),
    ("train", r"experiment=flowar-", _FLOW, "likewise"),
    ("train", r"experiment=llamagen-[bl]\b", _RASTER, "likewise"),
    ("train", r"experiment=(llamagen-vq|tokenizer-vq)", f"{_PIXELS} {_JUDGE}", "likewise"),
    ("train", r"objective=adversarial", _JUDGE, "likewise"),
    ("train", r"experiment=scaling-", _POINTS, "a law needs more of them"),
    ("evaluate", "", "spread=3", "an eigenvalue problem for each draw"),
    ("bench", "", "repeats=1 warmup=0", "times are not what is tested"),
    ("bench", r"batch=", "batch=[1]", "likewise"),
]


def run(argv: Sequence[str]) -> None:
    """Run a command of a page as this process.

    Args:
        argv: its words.
    """
    name, *words = argv
    COMMANDS.get(name, _own)(name, words)


def names() -> list[str]:
    """Return the commands that pages find on their PATH."""
    return [*{**commands(), **COMMANDS}]


def _own(name: str, words: Sequence[str]) -> None:
    home, _, function = commands()[name].partition(":")
    line = " ".join(words)
    asked = {"--help", "--version"} & {*words}
    for command, pattern, settings, _ in SETTINGS:
        if name == f"var-{command}" and re.search(pattern, line) and not asked:
            words = [*words, *(f"++{setting}" for setting in settings.split())]
    sys.argv = [name, *words]
    getattr(import_module(home), function)()


def _python(name: str, words: Sequence[str]) -> None:
    """Run a program or a module, ours as the command that it is."""
    sys.path.insert(0, os.getcwd())
    if words[:1] != ["-m"]:
        sys.argv = [*words]
        runpy.run_path(words[0], run_name="__main__")
    elif words[1].startswith("var.scripts."):
        _own(words[1].replace("var.scripts.", "var-"), words[2:])
    elif words[1] == "pytest":
        _collect(words[2:])


def _collect(words: Sequence[str]) -> None:
    """Look which tests would be run; of all those there are, a few."""
    os.chdir(ROOT)
    some = [] if any(Path(word).exists() for word in words) else ["tests/test_golden.py"]
    sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *words, *some]))


def _app(name: str, words: Sequence[str]) -> None:
    """Serve until there is an answer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    threading.Thread(target=_end_when_answered, args=(port,), daemon=True).start()
    _own(name, [*words, f"++port={port}"])


def _end_when_answered(port: int, patience: int = 60) -> None:
    for _ in range(10 * patience):
        sleep(0.1)
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}") as page:
            os.kill(os.getpid(), signal.SIGTERM if page.status == 200 else signal.SIGKILL)
            return
    os._exit(1)


def _launched(name: str, words: Sequence[str]) -> None:
    """Run what Accelerate or Slurm would start many times, once."""
    start = words.index("-m" if name == "accelerate" else "python")
    _python(name, [word for word in words[start:] if word != "python"])


def _pip(name: str, words: Sequence[str]) -> None:
    """Look whether there is what would be installed; tests/house/test_install.py installs it."""
    assert words[0] == "install", words
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    for what in (word for word in words[1:] if not word.startswith("-")):
        package, _, extras = what.rstrip("]").partition("[")
        assert package in (".", parser["metadata"]["name"]), f"{what} is not this package"
        for extra in filter(None, extras.split(",")):
            assert extra in parser["options.extras_require"], f"there is no extra {extra}"


# Commands that are not what they are called: by what they are run instead.
COMMANDS: dict[str, Callable[[str, Sequence[str]], None]] = {
    "accelerate": _launched,
    "pip": _pip,
    "python": _python,
    "srun": _launched,
    "var-app": _app,
}
