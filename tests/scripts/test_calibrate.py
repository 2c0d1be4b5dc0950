"""`var-calibrate` on a tiny run, through the real configs and the real command line."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

import var
from tests.conftest import make_run
from tests.scripts.options import option_names
from var import store
from var.errors import UserError
from var.scripts import sample
from var.scripts.calibrate import labels, main


def command(patch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command as if typed; return its exit code."""
    patch.setattr(sys, "argv", ["var-calibrate", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run(*overrides: str) -> None:
    """Run the command on the composed config, as other code would."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("calibrate", overrides=["progress=false", "device=cpu", *overrides]))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_run_folder_gets_a_budget_and_samples_with_it(run_folder: Path, place: Path) -> None:
    words = [f"model={run_folder}", "budget=0.7", "least=1", "number=4"]
    run(*words, "batch_size=3")
    budget = var.load(run_folder).run.budget
    assert budget is not None and budget.schedule == store.load(run_folder).recipe.schedule
    assert sorted(budget.capacities[2]) == [2, 5], "one drafter, and 2 left of 0.7 x 5 x 2"
    text = (run_folder / store.BUDGET).read_text()
    run(*words, "out=again/b.yaml")
    assert Path("again/b.yaml").read_text() == text, "neither batch nor place matter"
    assert os.listdir(place) == ["again"] and not list(run_folder.glob(".*"))
    assert torch.isfinite(var.load(run_folder)([0, 1], cache="scale")).all()
    with initialize_config_module("var.configs", version_base="1.3"):
        words = [f"model={run_folder}", "cache=scale", "cache.budget=again/b.yaml", "device=cpu"]
        sample.main(compose("sample", overrides=[*words, "progress=false"]))
    assert Path("samples.png").is_file()


def test_a_model_of_single_cells_has_no_budget(place: Path) -> None:
    store.save(place / "cells", make_run(family="raster"))
    with pytest.raises(UserError, match="cells decides single cells: budgets are for models that"):
        run("model=cells")
    assert not (place / "cells" / store.BUDGET).exists()


def test_labels_are_drawn_by_the_seed_all_different_if_possible(run_folder: Path) -> None:
    pipe = var.load(run_folder)
    with initialize_config_module("var.configs", version_base="1.3"):
        options = [compose("calibrate", [f"seed={i}", "number=7"]) for i in range(6)]
    drawn = [labels(each, pipe) for each in options]
    assert all(sorted(each[:3]) == sorted(each[3:6]) == [0, 1, 2] for each in drawn)
    assert len({tuple(each) for each in drawn}) > 1 and drawn[0] == labels(options[0], pipe)


FAULTS = {
    "budget=0": "budget must be above 0 and at most 1, got 0.0",
    "drafters=2": "drafters must be in 0..1, got 2.0",
    "number=0": "number must be 1 or more, got 0",
    "labels=[dgo]": "unknown class 'dgo': did you mean 'Dog'?",
    "labels=[]": "labels=[] names no class: there is nothing to observe",
    "model=missing": "missing is not a run folder: say where to write, out=budget.yaml",
    "sampling.top_k=-1": "sampling: top_k must be 0",
    "out=file/b.yaml": "cannot write file/b.yaml: file is not a folder that can be written to",
    "out=.": "out=. is a folder: name a file in it, out=budget.yaml",
    "device=tpu": "unknown device 'tpu'",
}


@pytest.mark.parametrize("word", FAULTS)
def test_a_fault_of_the_user_is_one_line(
    word: str,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("file").touch()
    assert command(monkeypatch, f"model={run_folder}", "progress=false", "device=cpu", word) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"var-calibrate: error: {FAULTS[word]}")
    assert text.count("\n") == 1
    assert os.listdir() == ["file"] and not (run_folder / store.BUDGET).exists()


def test_help_explains_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert not [name for name in option_names("calibrate") if name not in text]
    assert "var-calibrate model=runs/my-run" in text
