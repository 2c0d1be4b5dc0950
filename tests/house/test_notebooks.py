"""The notebooks run from top to bottom, and store no output."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_is_short_and_clean(path: Path) -> None:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    if "matplotlib" in "".join(sources):
        pytest.importorskip("matplotlib").use("agg")
    assert sum(source.count("\n") + 1 for source in sources) <= 60
    names: dict[str, Any] = {}
    for source in sources:
        exec(compile(source, str(path), "exec"), names)


def test_a_notebook_runs_in_a_kernel(root: Path, tmp_path: Path) -> None:
    for name in ("nbmake", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    notebook = root / "notebooks/scaling_law.ipynb"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--nbmake", str(notebook)]
    where = {"PYTHONPATH": str(root), "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    run = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "-p", "no:cacheprovider"],
        env={**os.environ, **where},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stdout + run.stderr
