"""Every block of the documentation runs: page by page, in order, each page in an empty folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import pages, small, stand_ins
from tests.docs.pages import LANGUAGES, ROOT, Block

PAGES = pages.pages()
BLOCKS = [block for page in PAGES.values() for block in page]
CODE = "\n".join(block.source for block in BLOCKS if block.language in ("bash", "python"))


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the PATH of pages, behind which a process runs what they call."""
    folder = tmp_path_factory.mktemp("bin")
    client, address = ROOT / "tests/docs/client.py", folder / "socket"
    for name in stand_ins.names():
        line = f'exec "{sys.executable}" -IS "{client}" "{address}" {name} "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    command = [sys.executable, "-m", "tests.docs.server", str(address)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(folder, folder)) as server:
        while not address.exists():
            assert server.poll() is None, "the server of commands has ended"
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.05)
        yield folder
        server.kill()


def environment(place: Path, commands: Path) -> dict[str, str]:
    """Return the environment of a page: nothing is fetched, and nothing left at home."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(place / ".cache"),
    }


@pytest.fixture
def place(tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which a page is run."""
    for name, value in environment(tmp_path, commands).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    small.install(monkeypatch)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, place: Path) -> None:
    text = "\n".join(block.source for block in PAGES[page])
    for name, make in stand_ins.THINGS.items():
        if re.search(rf"(?<!\w){re.escape(name)}\b", text):
            make(place / name)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in PAGES[page]:
        if block.language == "python":
            run_python(block, names)
        elif block.language == "bash":
            run_bash(block)


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block after those before it; a traceback shows its lines in the page."""
    source = "\n" * (block.line - 1) + smaller(block.source)
    exec(compile(source, str(ROOT / block.page), "exec"), names)


def run_bash(block: Block) -> None:
    """Run a block as a script, which ends at the first fault."""
    command = ["bash", "-euo", "pipefail", "-c", smaller(block.source)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, f"{block.place} ends with {run.returncode}:\n{run.stdout[-5000:]}"


def smaller(source: str) -> str:
    """Return code with words that stand in for others."""
    for pattern, instead, _ in stand_ins.WORDS:
        source = re.sub(pattern, instead, source)
    return source


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_say_what_they_are(page: str) -> None:
    for block in PAGES[page]:
        assert block.language in LANGUAGES, f"{block.place}: {block.language or 'no language'}"
        if block.language == "yaml":
            yaml.safe_load(block.source)


def test_every_stand_in_is_needed() -> None:
    lines = CODE.replace("\\\n", "")
    patterns = [pattern for pattern, _, _ in stand_ins.WORDS]
    patterns += [rf"(var-|scripts\.){name} .*{more}" for name, more, _, _ in stand_ins.SETTINGS]
    assert not [pattern for pattern in patterns if not re.search(pattern, lines)]
    names = [*stand_ins.THINGS, *stand_ins.COMMANDS]
    assert not [name for name in names if name not in lines]
