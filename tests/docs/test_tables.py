"""The tables of recipes and of checkpoints say what there is: no row too many, none too few."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.docs.pages import ROOT
from var import hub
from var.published import CHECKPOINTS, EVALUATIONS, Checkpoint

ZOO = ROOT / "var/zoo"
FIGURES = ("FID", "IS", "rFID")


def rows(page: str, columns: int) -> list[list[str]]:
    """Return the cells of rows that begin with a name, of a page's tables of so many columns."""
    found: list[list[str]] = []
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == columns and re.fullmatch(r"`[\w-]+`", cells[0]):
            found.append([cells[0].strip("`"), *cells[1:]])
    return found


def names(page: str, columns: int) -> list[str]:
    """Return what the rows are of, in order."""
    return [cells[0] for cells in rows(page, columns)]


def test_every_experiment_has_a_recipe_and_every_recipe_is_an_experiment() -> None:
    experiments = [path.stem for path in (ROOT / "configs/experiment").glob("*.yaml")]
    assert sorted(names("recipes.md", 5)) == sorted(experiments)


def test_every_shipped_model_is_in_the_table() -> None:
    assert sorted(names("checkpoints.md", 6)) == hub.shipped()


@pytest.mark.parametrize("cells", rows("checkpoints.md", 6), ids=lambda cells: cells[0])
def test_a_shipped_model_is_of_the_size_that_the_table_says(cells: list[str]) -> None:
    name, _, parameters, disk, *_ = cells
    files = [ZOO / name / f"{part}.safetensors" for part in ("model", "tokenizer")]
    files = [file for file in files if file.exists()]
    assert parameters == " + ".join(f"{count(file) / 1e6:.1f} M" for file in files)
    assert disk == " + ".join(f"{file.stat().st_size / 1e6:.1f} MB" for file in files)


def test_every_published_checkpoint_is_in_the_table() -> None:
    assert sorted(names("checkpoints.md", 7)) == sorted(CHECKPOINTS)


@pytest.mark.parametrize("cells", rows("checkpoints.md", 7), ids=lambda cells: cells[0])
def test_a_published_checkpoint_is_what_the_table_says(cells: list[str]) -> None:
    name, *said, licence = cells
    assert said == published(name, CHECKPOINTS[name]) and licence


def published(name: str, checkpoint: Checkpoint) -> list[str]:
    """Return the cells of a row between the name and the licence."""
    assert checkpoint.parameters is not None
    files: list[str] = []
    for prefix, file in checkpoint.files.items():
        home = checkpoint.repositories.get(prefix, "")
        last = file if isinstance(file, str) else file[-1]
        files.append(f"`{last}`" + (f" of `{home}`" if home else ""))
    return [
        f"{checkpoint.parameters / 1e6:.0f} M",
        str(checkpoint.size),
        f"`{checkpoint.repository}`",
        ", ".join(files),
        figures(name),
    ]


def figures(name: str) -> str:
    """Return the published figures of a checkpoint, of each metric the one to reach first."""
    scores = EVALUATIONS[name].scores if name in EVALUATIONS else ()
    first = {score.metric: score.value for score in reversed(scores)}
    return ", ".join(f"{metric} {first[metric]:g}" for metric in FIGURES if metric in first)


def count(file: Path) -> int:
    """Return the number of weights in a file."""
    with safe_open(file, "pt") as stored:
        shapes = [stored.get_slice(key).get_shape() for key in list(stored.keys())]
    return sum(map(math.prod, shapes))
