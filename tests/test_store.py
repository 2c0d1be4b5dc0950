"""Run folders: what is saved comes back, what is damaged is named, nothing is ever half written."""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import RUNS, make_run
from var import store
from var.errors import UserError
from var.recipe import Data, Recipe
from var.sampling import Sampling
from var.schedule import Schedule
from var.store import Run


def assert_equal(ours: Run, theirs: Run) -> None:
    assert ours.recipe == theirs.recipe
    for a, b in ((ours.tokenizer, theirs.tokenizer), (ours.model, theirs.model)):
        assert a is not None and b is not None
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


@RUNS
def test_a_run_comes_back_to_the_last_bit(tiny_run: Run, run_folder: Path) -> None:
    loaded = store.load(run_folder)
    assert_equal(loaded, tiny_run)
    assert not loaded.tokenizer.training
    assert sorted(os.listdir(run_folder)) == [store.CONFIG, store.MODEL, store.TOKENIZER]
    assert len({path.stat().st_mode for path in run_folder.iterdir()}) == 1


@RUNS
def test_a_tokenizer_alone_comes_back(tiny_run: Run, tmp_path: Path) -> None:
    recipe = Recipe(tiny_run.recipe.tokenizer, tiny_run.recipe.schedule)
    store.save(tmp_path, Run(recipe, tiny_run.tokenizer))
    loaded = store.load(tmp_path)
    assert loaded.model is None and loaded.recipe == recipe


@RUNS
def test_only_the_generator_changes_its_type(run_folder: Path) -> None:
    run = store.load(run_folder, dtype=torch.bfloat16)
    assert run.model is not None
    kept = {name for name, p in run.model.named_parameters() if p.dtype != torch.bfloat16}
    exponents = {"dt_bias", "A_log", "D"}  # of Mamba layers, in float32 always
    assert {name.rpartition(".")[2] for name in kept} in (set(), exponents)
    assert {p.dtype for p in run.tokenizer.parameters()} == {torch.float32}


def test_other_files_in_the_folder_are_left_alone(tiny_run: Run, run_folder: Path) -> None:
    (run_folder / "README.md").write_text("card")
    store.save(run_folder, tiny_run)
    assert (run_folder / "README.md").read_text() == "card"


def test_recipes_survive_names_that_yaml_reads_otherwise() -> None:
    names = ("no", "1e3", "null", "2020-01-01", "Ümlaut: #1", "", "'", "tench\n")
    recipe = Recipe(
        {"_target_": "x", "rate": 1e-6, "flag": True, "sides": (1, 2)},
        Schedule.scales([1, (2, 3), 4]),
        data=Data("on", names, 4),
        sampling=Sampling(guidance=(0.5, 3), temperature=0.9, smooth=True),
    )
    again = Recipe.parse(recipe.text(), "here")
    assert again.data == recipe.data and again.sampling == recipe.sampling
    assert again.schedule == recipe.schedule and again.tokenizer["rate"] == 1e-6


class Cut(BaseException):
    """The end of a process, as far as a test can play it."""


def cut_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end at the n-th change of the disk; nothing is tidied up."""
    left = count(steps, -1)

    def last(change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if next(left) <= 0:
                raise Cut
            return change(*args, **kwargs)

        return guarded

    for owner, name in (
        (os, "fsync"),
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "replace"),
        (Path, "rmdir"),
        (Path, "write_text"),
        (store, "save_file"),
        (shutil, "rmtree"),
    ):
        patch.setattr(owner, name, last(getattr(owner, name)))


def test_a_save_cut_short_anywhere_leaves_the_old_run_or_the_new_one(
    run_folder: Path, tmp_path: Path
) -> None:
    old, new = make_run(0), make_run(1)
    seen = []
    for steps in count():
        folder = tmp_path / str(steps)
        shutil.copytree(run_folder, folder)
        with pytest.MonkeyPatch.context() as patch:
            cut_after(steps, patch)
            try:
                store.save(folder, new)
            except Cut:
                pass
            else:
                break
        loaded = store.load(folder)
        seen.append(loaded.recipe.data.name)
        assert_equal(loaded, old if loaded.recipe == old.recipe else new)
        store.save(folder, new)
        assert_equal(store.load(folder), new)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert seen == sorted(seen) and set(seen) == {"toy-0", "toy-1"}
    assert steps > 10


def test_a_folder_that_cannot_be_written_is_named(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the run folder .*file"):
        store.save(tmp_path / "file" / "run", tiny_run)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return what changes the config of a run folder."""

    def damage(folder: Path) -> None:
        plain = yaml.safe_load((folder / store.CONFIG).read_text())
        change(plain)
        (folder / store.CONFIG).write_text(yaml.safe_dump(plain))

    return damage


def resave(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Return what changes the weights of a run folder."""

    def damage(folder: Path) -> None:
        state = {key: value.clone() for key, value in load_file(folder / store.MODEL).items()}
        change(state)
        save_file(state, folder / store.MODEL)

    return damage


def target(name: str) -> Callable[[Path], None]:
    return edit(lambda plain: plain["backbone"].update(_target_=name))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (
        lambda folder: os.truncate(folder / store.MODEL, 10_000),
        r"model\.safetensors is damaged, perhaps truncated .*again",
    ),
    "empty": (lambda folder: os.truncate(folder / store.TOKENIZER, 0), r"tokenizer.*damaged"),
    "no weights": (
        lambda folder: (folder / store.MODEL).unlink(),
        r"model\.safetensors is missing",
    ),
    "no config": (lambda folder: (folder / store.CONFIG).unlink(), r"not a run folder.*config"),
    "not YAML": (lambda folder: (folder / store.CONFIG).write_text("a: [1"), r"is not YAML"),
    "no mapping": (lambda folder: (folder / store.CONFIG).write_text("- 1"), r"must map names"),
    "missing key": (
        resave(lambda s: s.pop("head.linear.bias")),
        r"model.*missing: head\.linear\.bias",
    ),
    "unknown key": (resave(lambda s: s.update(odd=torch.ones(1))), r"model.*unknown: odd"),
    "shape": (
        resave(lambda s: s.update({"head.linear.bias": torch.ones(5)})),
        r"wrong shape: head\.linear\.bias \(5,\) instead of \(32,\)",
    ),
    "whole numbers": (
        resave(lambda s: s.update({"head.linear.bias": s["head.linear.bias"].long()})),
        r"wrong type: head\.linear\.bias torch\.int64",
    ),
    "many keys": (resave(lambda s: s.clear() or s.update(x=torch.ones(1))), r"and \d+ more"),
    "unknown section": (edit(lambda c: c.update(colour=1)), r"config\.yaml: unknown colour; known"),
    "missing section": (edit(lambda c: c.pop("schedule")), r"missing schedule"),
    "unknown number": (edit(lambda c: c["backbone"].update(wdith=3)), r"\(VAR\): unknown wdith"),
    "missing number": (edit(lambda c: c["backbone"].pop("depth")), r"\(VAR\): missing depth"),
    "odd number": (edit(lambda c: c["backbone"].update(heads=5)), r"VAR cannot be built.*5 heads"),
    "no target": (
        edit(lambda c: c["backbone"].pop("_target_")),
        r"backbone must be a mapping with",
    ),
    "ladder": (edit(lambda c: c.update(schedule=["a"])), r"schedule must be a list of sides"),
    "data": (edit(lambda c: c["data"].update(sise=3)), r"data: unknown sise"),
    "classes": (edit(lambda c: c["data"].update(classes=5)), r"data: classes must be a list"),
    "size": (edit(lambda c: c["data"].update(size="x")), r"data: size must be a number of pixels"),
    "sampling": (edit(lambda c: c["sampling"].update(top_k=-1)), r"sampling: top_k must be 0"),
    "foreign target": (target("os.system"), r"_target_ must be in var\.tokenizers or var\.models"),
    "target outside": (target("var.store.os.system"), r"_target_ must be in"),
    "imported target": (target("var.models.var.nn.Linear"), r"there is no var\.models"),
    "borrowed target": (target("var.models.nextscale.Static"), r"is not a module of var"),
    "function": (target("var.models.nextscale.drop_path"), r"is not a module of var"),
    "no model": (
        target("var.models.nextscale.NextScale"),
        r"NextScale cannot be built.*such as VAR",
    ),
    "no such class": (target("var.models.var.RAV"), r"there is no var\.models\.var\.RAV"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault: str, run_folder: Path) -> None:
    damage, message = FAULTS[fault]
    damage(run_folder)
    with pytest.raises(UserError, match=message) as caught:
        store.load(run_folder)
    assert "\n" not in str(caught.value)


def test_buffers_outside_the_state_dict_are_refused(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(spec: object, where: str) -> nn.Module:
        with torch.device("meta"):
            module = nn.Linear(1, 1)
            module.register_buffer("table", torch.ones(1), persistent=False)
        return module

    monkeypatch.setattr(store, "build", build)
    monkeypatch.setattr(store, "read", lambda *_: nn.Linear(1, 1).state_dict())
    with pytest.raises(RuntimeError, match="must be persistent"):
        store.load(run_folder)


def test_a_run_has_a_model_exactly_if_its_recipe_says_so(tiny_run: Run) -> None:
    with pytest.raises(ValueError, match="or neither"):
        Run(tiny_run.recipe, tiny_run.tokenizer)
