"""The two commands of a newcomer, and the page that names them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = ["scripts/environment.sh", "scripts/test.sh", "scripts/demo.sh", ".ci/run"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses(root: Path, name: str) -> None:
    run = subprocess.run(["bash", "-n", root / name], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_ci_can_be_executed(root: Path) -> None:
    assert os.access(root / ".ci/run", os.X_OK)


@pytest.mark.parametrize("script", ["test.sh", "demo.sh"])
def test_an_old_python_is_refused_with_a_remedy(root: Path, tmp_path: Path, script: str) -> None:
    shutil.copytree(root / "scripts", tmp_path / "scripts")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(root / name, tmp_path)
    old = tmp_path / "old python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": str(old)}
    command = ["bash", str(tmp_path / "scripts" / script)]
    run = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert run.returncode == 1
    assert not run.stdout
    assert "Python 3.11" in run.stderr and str(old) in run.stderr and "PYTHON=" in run.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_readme_is_short(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_names_commands_that_exist(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    declared = (root / "setup.cfg").read_text(encoding="utf-8")
    used = set(re.findall(r"^(?:\$ )?(var-[a-z]+)", text, re.MULTILINE))
    assert used and all(f"{name} = var.scripts." in declared for name in used)
    for script in re.findall(r"bash (scripts/\S+\.sh)", text):
        assert (root / script).is_file()
