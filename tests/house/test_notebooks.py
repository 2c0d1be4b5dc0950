"""The notebooks: short, without output, one place to choose a model in, and they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NAMES = ["01_tokens", "02_sampling", "03_accelerate", "04_train", "05_edit", "06_scaling_laws"]
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    """Return the sources of the cells of code."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def test_all_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@EACH
def test_notebook_is_short_and_stores_no_output(path: Path) -> None:
    assert sum(source.count("\n") + 1 for source in code(path)) <= 60


@EACH
def test_models_and_device_are_chosen_in_the_first_cell_only(path: Path, root: Path) -> None:
    _, *others = code(path)
    shipped = [folder.name for folder in (root / "var/zoo").iterdir()]
    words = [f'"{word}"' for word in (*shipped, "cpu", "cuda")]
    assert not [word for word in words for source in others if word in source]


def test_the_notebooks_run_in_a_kernel(root: Path, tmp_path: Path) -> None:
    for name in ("nbmake", "ipykernel", "matplotlib", "xdist"):
        pytest.importorskip(name)
    # Two at a time, each on one thread: threads that wait for each other would slow both down.
    how = ["--nbmake", "--nbmake-timeout=300", "-n", "2"]
    quiet = ["-q", "-c", os.devnull, f"--rootdir={tmp_path}", "-p", "no:cacheprovider"]
    where = {"PYTHONPATH": str(root), "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *how, *quiet, *map(str, NOTEBOOKS)],
        env={**os.environ, **where, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0 and f"{len(NOTEBOOKS)} passed" in said, said
