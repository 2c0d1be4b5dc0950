"""Decodings by name, and companions: runs that work along on one tokenizer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import var
from tests.conftest import make_run
from var import store
from var.choices import CACHES
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.models.var import VAR
from var.pipeline import Pipeline
from var.recipe import Recipe
from var.schedule import Schedule
from var.store import Run


@pytest.fixture
def small(tmp_path: Path, tiny_run: Run) -> str:
    """A run folder with another generator on the tokenizer of `tiny_run`."""
    spec = {**(tiny_run.recipe.backbone or {}), "depth": 1}
    numbers: Any = {k: v for k, v in spec.items() if k != "_target_"}
    torch.manual_seed(3)
    model = VAR(**numbers, init_gate=1.0, init_head=10.0)
    run = Run(replace(tiny_run.recipe, backbone=spec), tiny_run.tokenizer, model.eval())
    store.save(tmp_path / "small", run)
    return str(tmp_path / "small")


def recommending(run: Run, **decoding: Any) -> Run:
    return replace(run, recipe=replace(run.recipe, decoding=decoding))


def test_a_decoding_is_given_by_name_and_settings(tiny_run: Run, small: str) -> None:
    pipe = Pipeline(tiny_run)
    choice = {"name": "collaborative", "closer": small, "switch": 2}
    both = var.Collaborative(pipe.model, pipe.companion(small).model, 2)
    assert torch.equal(pipe([0, 1], decoding=choice), pipe([0, 1], decoding=both))
    *_, canvas = pipe.steps([0, 1], decoding=choice)
    assert torch.equal(pipe.decode(canvas), pipe([0, 1], decoding=both))
    assert not torch.equal(pipe([0, 1], decoding=choice), pipe([0, 1]))
    assert torch.equal(pipe([0], decoding="sequential"), pipe([0]))
    recommending_both = Pipeline(recommending(tiny_run, **choice))
    assert torch.equal(
        recommending_both([0, 1], decoding="recommended"), pipe([0, 1], decoding=both)
    )


@pytest.mark.parametrize("cache", CACHES)
def test_two_models_work_together_on_every_cache(tiny_run: Run, small: str, cache: str) -> None:
    pipe, choice = Pipeline(tiny_run), {"name": "collaborative", "closer": small, "switch": 2}
    images = pipe([0, 1, 2], decoding=choice, cache=cache, number=2, batch_size=4)
    again = pipe([0, 1, 2], decoding=choice, cache=cache, number=2)
    torch.testing.assert_close(images, again, rtol=0, atol=1e-5)
    opened = next(pipe.steps([0, 1, 2], cache=cache)).latent
    both = next(pipe.steps([0, 1, 2], decoding=choice, cache=cache)).latent
    assert torch.equal(opened, both)


def test_what_a_run_recommends_is_the_default(tiny_run: Run, small: str, tmp_path: Path) -> None:
    choice = {"name": "collaborative", "closer": small, "switch": 1}
    store.save(tmp_path / "pair", recommending(tiny_run, **choice))
    pipe = var.load(tmp_path / "pair")
    assert torch.equal(pipe([0, 1]), Pipeline(tiny_run)([0, 1], decoding=choice))
    alone = Sequential(pipe.model)
    assert torch.equal(pipe([0, 1], decoding=alone), Pipeline(tiny_run)([0, 1]))


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ("psychic", "unknown decoding 'psychic': there are .*collaborative.*sequential"),
        ({"closer": "x"}, "unknown decoding None"),
        ({"name": "collaborative"}, "decoding collaborative: missing closer, switch"),
        ({"name": "sequential", "depth": 1}, "decoding sequential: unknown depth"),
        ({"name": "collaborative", "closer": "x", "switch": "y"}, "switch=y: use a whole number"),
        ({"name": "collaborative", "closer": "x", "switch": 1}, "no model named x"),
    ],
)
def test_a_wrong_choice_is_named(tiny_run: Run, decoding: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pipeline(tiny_run)([0], decoding=decoding)
    if not isinstance(decoding, str) and "name" in decoding:
        with pytest.raises(UserError, match=message):
            Pipeline(recommending(tiny_run, **decoding))([0])


def test_a_recommendation_without_a_name_is_refused(tiny_run: Run) -> None:
    text = tiny_run.recipe.text() + "decoding: {switch: 3}\n"
    with pytest.raises(UserError, match="here: decoding must be a mapping with a name"):
        Recipe.parse(text, "here")


def test_a_companion_is_loaded_once_and_brings_no_tokenizer(tiny_run: Run, small: str) -> None:
    pipe = Pipeline(tiny_run)
    other = pipe.companion(small)
    assert other.run.tokenizer is pipe.run.tokenizer and pipe.companion(small) is other
    assert pipe.to("cpu").companion(small) is other


def test_a_companion_is_of_the_same_type(run_folder: Path, small: str) -> None:
    other = var.load(run_folder, dtype=torch.bfloat16).companion(small)
    assert {p.dtype for p in other.run.model.parameters()} == {torch.bfloat16}


def test_a_companion_on_another_tokenizer_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    store.save(tmp_path / "stranger", make_run(seed=1))
    with pytest.raises(UserError, match=r"stranger .* another one \(codebook.weight differs\)"):
        Pipeline(tiny_run).companion(str(tmp_path / "stranger"))


def test_a_companion_may_have_another_decoder(tiny_run: Run, small: str) -> None:
    run = store.load(small)
    with torch.no_grad():
        run.tokenizer.post_quant_conv.bias.add_(1)
    store.save(small, run)
    assert Pipeline(tiny_run).companion(small).run.tokenizer is tiny_run.tokenizer


def test_a_companion_of_another_ladder_is_refused(tiny_run: Run, small: str) -> None:
    run = store.load(small)
    store.save(small, replace(run, recipe=replace(run.recipe, schedule=Schedule.scales([1, 4]))))
    with pytest.raises(UserError, match=r"grids \[\(1, 1\), \(4, 4\)\] instead of \[\(1, 1\), \(2"):
        Pipeline(tiny_run).companion(small)


def test_a_tokenizer_is_no_companion(tiny_run: Run, tmp_path: Path) -> None:
    store.save(tmp_path, Run(replace(tiny_run.recipe, backbone=None), tiny_run.tokenizer))
    with pytest.raises(UserError, match="is a tokenizer without a generator"):
        Pipeline(tiny_run).companion(str(tmp_path))


@pytest.mark.parametrize("choice", ["scale", {"name": "scale", "budget": 0.5}])
def test_a_model_of_single_cells_keeps_no_parts_of_scales(choice: Any) -> None:
    pipe = Pipeline(make_run(family="raster"))
    with pytest.raises(UserError, match="this model decides single cells: use cache=static or"):
        pipe([0], cache=choice)
    assert torch.equal(pipe([0], cache="dense"), pipe([0], cache="static"))
