"""`var-sample search=best_of`: the best of several, and PNGs that say which they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import var
from tests.scripts.test_sample import command, pixels, run
from var.condition import Condition
from var.metrics.features import SmallClassifier, small_classifier
from var.pixels import to_uint8
from var.png import read_settings, save_png
from var.scripts.command import made

SHAPE = {
    "mean": [0.5] * 3,
    "deviation": [0.2] * 3,
    "stages": [[8]],
    "classes": 3,
    "padding": 0,
    "side": 8,
}


@pytest.fixture
def searched(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a search with a classifier of random weights."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = SmallClassifier(name="FD-Toy", **SHAPE).state_dict()
    save_file({k.removeprefix("layers."): v for k, v in state.items()}, "net.safetensors")
    shape = [f"++search.features.{name}={value}" for name, value in SHAPE.items()]
    words = ["search=best_of", "search.number=4", "search.features.path=net.safetensors", *shape]
    return [f"model={run_folder}", "labels=[dog,cat]", "number=2", "seed=3", *words]


def test_each_image_is_the_best_of_its_candidates(searched: list[str]) -> None:
    run(*searched, "out=folder", "grid=true", "batch_size=6")
    pipe = var.load(read_settings("folder/grid.png")["model"])
    network = small_classifier("net.safetensors", name="FD-Toy", **SHAPE)
    best = var.best_of(
        pipe, [1, 1, 0, 0], number=4, scorer=var.ClassLogProbability(network), seed=3
    )
    files = sorted(Path("folder").glob("0*.png"))
    for image, seed, path in zip(best.images, best.seeds, files, strict=True):
        note = read_settings(path)
        assert torch.equal(to_uint8(image)[0], pixels(path)) and note["seed"] == int(seed)
        assert note["search"]["name"] == "best_of" and note["search"]["number"] == 4
        again = pipe(note["labels"], seed=note["seed"])
        assert torch.equal(to_uint8(again)[0], pixels(path))
    assert read_settings("folder/grid.png")["seeds"] == best.seeds[:, 0].tolist()


def test_what_a_png_says_makes_its_search_again(searched: list[str]) -> None:
    run(*searched, "out=folder", "grid=true", "search.prune={1:0.5}")
    whole = read_settings("folder/grid.png")
    pipe = var.load(whole["model"])

    def again(note: dict[str, Any]) -> list[int]:
        search, labels = note["search"], note["labels"]
        how = {name: search[name] for name in ("number", "prune", "seed")}
        scorer = var.ClassLogProbability(made(search["features"]))
        labels = [label for label in labels for _ in range(note.get("number", 1))]
        return var.best_of(pipe, labels, scorer=scorer, **how).seeds[:, 0].tolist()

    notes = [read_settings(path) for path in sorted(Path("folder").glob("0*.png"))]
    assert [note["search"]["seed"] for note in notes] == [3, 7, 11, 15]
    assert [again(note) for note in notes] == [[note["seed"]] for note in notes]
    assert again(whole) == whole["seeds"] == [note["seed"] for note in notes]


def test_the_best_of_edits_is_delivered(searched: list[str]) -> None:
    photo = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_png(Path("photo.png"), to_uint8(photo), {})
    run(*searched, "out=edits", "edit=vary", "edit.groups=2", "image=photo.png")
    note = read_settings("edits/000002_cat.png")
    network = small_classifier("net.safetensors", name="FD-Toy", **SHAPE)
    images = var.load(note["model"])([0], number=4, seed=11, edit=note["edit"])
    best = var.ClassLogProbability(network)(images, Condition(torch.zeros(4).long())).argmax()
    assert torch.equal(to_uint8(images[best]), pixels("edits/000002_cat.png"))
    assert note["seed"] == 11 + int(best) and note["search"]["seed"] == 11


def test_pruning_is_asked_for_by_scale(searched: list[str]) -> None:
    run(*searched, "out=pruned.png", "search.prune={1:0.5,2:1}")
    note = read_settings("pruned.png")
    assert note["search"]["prune"] == {"1": 0.5, "2": 1}
    seeds = note["seeds"]
    assert all(3 + 4 * i <= seed < 7 + 4 * i for i, seed in enumerate(seeds))
    run(*searched, "out=alone", "search.prune={1:0.5,2:1}", "batch_size=2")
    notes = [read_settings(path) for path in sorted(Path("alone").iterdir())]
    assert [each["seed"] for each in notes] == seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.number=0"], "number of candidates must be a whole number of 1 or more, got 0"),
        (["search.prune={3:0.5}"], "prune={3: 0.5}: an image of 3 groups can be judged after 1..2"),
        (["search.prune={1:2.5}"], "prune={1: 2.5}: keep a share"),
        (["search.features.path=none"], "no feature network at none: set features.path to its"),
        (["labels=[-1]"], "label -1 cannot be scored: FD-FashionMNISTCNN tells classes 0..2"),
        (["search.prune=0.5"], "prune=0.5: say after how many groups what stays, as in {3: 0.5}"),
        (["search.prune=[1,2]"], "prune=[1, 2]: say after how many groups what stays"),
        (["search.prune={one:2}"], "prune={'one': 2}: an image of 3 groups can be judged after"),
        (["steps=true"], "search delivers finished images: leave steps=true out"),
        (["cache=scale", "search.prune={1:2}"], "prune has survivors read what cache=scale has"),
    ],
)
def test_a_fault_of_the_user_is_one_line(
    words: list[str],
    message: str,
    searched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, *searched, "progress=false", *words) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"var-sample: error: {message}") and text.count("\n") == 1


def test_a_search_needs_a_classifier(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search=best_of", "features@search.features=none", "progress=false"]
    assert command(monkeypatch, f"model={run_folder}", *words) == 2
    text = capsys.readouterr().err
    message = "features=none does not tell the classes of the data: it cannot score"
    assert text.startswith(f"var-sample: error: {message}") and text.count("\n") == 1
