"""Cards, the hub, and what goes there and comes back: all without a network."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

import var
from var import cards, hub, sharing, store
from var.errors import UserError
from var.pipeline import Pipeline
from var.recipe import Data
from var.store import Run

LABELS: dict[str, Any] = {"labels": [0, 2], "seed": 3}


@pytest.fixture
def pipe(tiny_run: Run) -> Pipeline:
    return Pipeline(tiny_run)


def fail(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_run_has_a_card_with_all_that_its_recipe_says(
    pipe: Pipeline, tmp_path: Path
) -> None:
    pipe.save(tmp_path / "my-run", license="apache-2.0")
    card = ModelCard.load(tmp_path / "my-run" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "var-toolkit",
        "license": "apache-2.0",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["visual-autoregressive", "image-generation", "var"],
    }
    for part in (
        "# my-run\n",
        "3: cat, Dog, T-shirt/top",
        "depth 2",
        "top_k 20",
        "(4, 4)",
        "toy-0",
    ):
        assert part in card.text
    for line in ('var.load("my-run")', "var-sample model=my-run", 'from_pretrained("my-run")'):
        assert line in card.text


def test_a_card_that_was_written_by_hand_stays_and_travels(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save(tmp_path / "a")
    mine = "---\nlicense: mit\nwidget: [1]\n---\n# About it\n\nWritten by hand.\n"
    (tmp_path / "a" / "README.md").write_text(mine)
    pipe.save(tmp_path / "a")
    assert (tmp_path / "a" / "README.md").read_text() == mine
    again = var.load(tmp_path / "a")
    again.save(tmp_path / "b", license="cc0-1.0")
    card = ModelCard.load(tmp_path / "b" / "README.md")
    assert card.text.strip() == "# About it\n\nWritten by hand."
    assert (card.data.license, card.data["widget"]) == ("cc0-1.0", [1])
    assert card.data.library_name == "var-toolkit"


def test_a_card_that_nobody_changed_is_written_anew(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save(tmp_path / "old-name")
    again = var.load(tmp_path / "old-name")
    assert "old-name" in again.run.card
    again.save(tmp_path / "new-name")
    text = (tmp_path / "new-name" / "README.md").read_text()
    assert text == (tmp_path / "old-name" / "README.md").read_text().replace("old-", "new-")


@pytest.mark.parametrize("odd", ["---\n: [\n---\ntext", "---\n- a\n---\ntext"])
def test_a_header_that_cannot_be_read_is_left_as_it_is(tiny_run: Run, odd: str) -> None:
    assert cards.card(replace(tiny_run, card=odd), "x") == odd


def test_a_card_says_what_is_known_of_the_origin(tiny_run: Run) -> None:
    run = replace(tiny_run, card=cards.noted("", base_model="owner/it"))
    card = ModelCard(cards.card(run, "me/mine"))
    assert card.data.base_model == "owner/it" and "# mine\n" in card.text
    assert hub.find("digits-vq").card.startswith("---\nlicense: mit\n---\n# digits-vq\n")


def test_names_of_any_kind_do_not_break_a_card(tiny_run: Run) -> None:
    classes = ("a|b", "two\nlines", "c")
    run = replace(tiny_run, recipe=replace(tiny_run.recipe, data=Data("x", classes)))
    odd = 'my "run"\nhere'
    text = cards.card(run, odd)
    assert r"| classes | 3: a\|b, two lines, c |" in text and '# my "run" here\n' in text
    assert f"var.load({json.dumps(odd)})" in text and f"var-sample 'model={odd}'" in text
    again = cards.card(replace(run, card=text), "new")
    assert 'var.load("new")' in again and "here" not in again, "it was ours, and is written anew"


@pytest.mark.parametrize("layout", ["run", "diffusers"])
def test_a_folder_holds_one_run_in_one_layout(pipe: Pipeline, tmp_path: Path, layout: str) -> None:
    pipe.save(tmp_path, layout=layout)
    pipe.save(tmp_path, layout=layout)
    (other,) = {"run", "diffusers"} - {layout}
    with pytest.raises(UserError, match=f"holds a run in the layout {layout}: name another"):
        pipe.save(tmp_path, layout=other)


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where what is pushed comes to lie."""

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            return f"https://hub/{name}?{private=}"

        def upload_folder(
            self, *, repo_id: str, folder_path: str, delete_patterns: list[str]
        ) -> None:
            gone = {*delete_patterns}
            assert gone >= names(Path(folder_path)), "what was there before does not stay"
            assert {"config.yaml", "budget.yaml", "model_index.json", "pipeline.py"} <= gone
            Path(folder_path).rename(tmp_path / "pushed")
            Path(folder_path).mkdir()

    monkeypatch.setattr(sharing, "HfApi", Api)
    return tmp_path / "pushed"


def test_a_run_is_pushed_with_its_card_and_nothing_else(pipe: Pipeline, pushed: Path) -> None:
    address = pipe.push_to_hub("me/my-var", private=True)
    assert address == "https://hub/me/my-var?private=True"
    assert names(pushed) == {store.CONFIG, store.MODEL, store.TOKENIZER, "README.md"}
    assert 'var.load("me/my-var")' in (pushed / "README.md").read_text()
    assert torch.equal(var.load(pushed)(**LABELS), pipe(**LABELS))


def test_a_shipped_model_is_pushed_with_its_own_card(pushed: Path) -> None:
    pipe = var.load("digits-var")
    pipe.push_to_hub("me/digits", layout="diffusers")
    card, weights = ModelCard.load(pushed / "README.md"), "diffusion_pytorch_model.safetensors"
    shipped = (hub._ZOO / "digits-var" / "README.md").read_text()
    assert card.text.strip() == shipped.strip() and card.data.license == "mit"
    assert names(pushed) == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler/component.py",
        "scheduler/scheduler_config.json",
        *(f"{part}/component.py" for part in ("tokenizer", "transformer")),
        *(f"{part}/config.json" for part in ("tokenizer", "transformer")),
        *(f"{part}/{weights}" for part in ("tokenizer", "transformer")),
    }


def test_what_the_hub_refuses_is_told(
    pipe: Pipeline, pushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing.HfApi, "create_repo", fail(OSError("403 Forbidden")))
    with pytest.raises(UserError, match="cannot upload to me/my-var: 403 Forbidden"):
        pipe.push_to_hub("me/my-var")
    with pytest.raises(TypeError, match="licence"):
        pipe.push_to_hub("me/my-var", licence="mit")  # pyright: ignore[reportCallIssue]
    monkeypatch.setattr(sharing.HfApi, "create_repo", fail(HTTPError("no route")))
    with pytest.raises(UserError, match="cannot upload to me/my-var: no route"):
        pipe.push_to_hub("me/my-var")
    with pytest.raises(UserError, match="unknown layout zip: there are run, diffusers"):
        pipe.push_to_hub("me/my-var", layout="zip")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, of which there is nothing else."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(cache: Path, name: str, revision: str, commit: str) -> Path:
    """Return the folder of a snapshot, as the hub's cache has it."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    return place / "snapshots" / commit


@pytest.mark.parametrize("layout", ["run", "diffusers"])
def test_a_downloaded_repository_makes_the_same_image(
    pipe: Pipeline, cache: Path, layout: str
) -> None:
    pipe.save(cached(cache, "me/my-var", "main", "a" * 40), layout=layout)
    dull = replace(pipe.run.recipe, sampling=replace(pipe.run.recipe.sampling, top_k=1))
    sharing.save(cached(cache, "me/my-var", "v2", "b" * 40), replace(pipe.run, recipe=dull))
    assert torch.equal(var.load("me/my-var")(**LABELS), pipe(**LABELS))
    assert torch.equal(var.load("me/my-var@v2")(**LABELS), pipe(**LABELS, top_k=1))
    with pytest.raises(UserError, match="there is no run folder me/my-var, and none to be had"):
        var.load("me/my-var@v3")


def test_no_more_is_fetched_than_is_needed(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(run_folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert var.load("me/my-var@v1.0").class_count == 3
    signs = ["config.yaml", "model_index.json", "config.json", "vae/config.json"]
    weights = ["tokenizer.safetensors", "model.safetensors"]
    files = ["config.yaml", *weights, "budget.yaml", "README.md"]
    assert asked == [("me/my-var", "v1.0", signs), ("me/my-var", "v1.0", files)]
    monkeypatch.setattr(hub, "snapshot_download", fail(LocalEntryNotFoundError("offline\nfoo")))
    with pytest.raises(UserError, match=r"no run folder me/my-var, .* hub: offline$"):
        var.load("me/my-var")
