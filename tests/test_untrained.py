"""Published sizes with random weights, others like them, and the names that they go by."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from tests import tiny_flowar
from tests.conftest import RUNS
from tests.test_published import VAE, VAR
from var import hub, published
from var.errors import UserError
from var.nn.mamba import Mamba2
from var.pipeline import Pipeline
from var.recipe import Recipe
from var.store import Run
from var.untrained import untrained


@pytest.mark.parametrize(
    "name",
    ["var-d16", "var-d30", "var-d36-s", "var-vae", "mvar-d12", "mvar-d32", "flowar-s", "flowar-h"],
)
def test_a_published_size_has_the_published_number_of_parameters(name: str) -> None:
    run = hub.find(f"random/{name}", device="meta", dtype=torch.bfloat16)
    module = run.tokenizer if run.model is None else run.model
    checkpoint = published.CHECKPOINTS[name]
    assert sum(p.numel() for p in module.parameters()) == checkpoint.parameters
    assert all(p.is_meta for p in module.parameters())
    assert run.recipe.data.size == checkpoint.size
    assert run.recipe.backbone is None or next(module.parameters()).dtype == torch.bfloat16


def test_a_size_without_a_blueprint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(published.CHECKPOINTS["var-d16"], system="odd")
    monkeypatch.setitem(published.CHECKPOINTS, "odd-1", odd)
    with pytest.raises(UserError, match="odd-1 can be had with its published weights only"):
        hub.find("random/odd-1")


@cache
def built(name: str) -> Run:
    """Return a run without weights, whose recipe can be stored."""
    run = hub.find(f"random/{name}", device="meta")
    assert Recipe.parse(run.recipe.text(), "it").schedule == run.recipe.schedule
    return run


@pytest.mark.parametrize("system", ["var", "mvar"])
@pytest.mark.parametrize("depth", [1, 17])
def test_a_depth_that_was_never_released_follows_the_rule(system: str, depth: int) -> None:
    run, released = built(f"{system}-d{depth}"), built(f"{system}-d16")
    ours, theirs = run.recipe.backbone, released.recipe.backbone
    assert ours is not None and theirs is not None
    sizes = {"depth": depth, "width": 64 * depth, "heads": depth, "drop_path": 0.1 * depth / 24}
    assert ours == theirs | sizes
    assert replace(run.recipe, backbone=theirs) == released.recipe


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("var-d2", 256),
        ("var-d2", 1024),
        ("mvar-d2", 512),
        ("mvar-d2", 1024),
        ("code-8", 512),
        ("var-d36-s", 256),
        ("flowar-s", 256),
        ("flowar-s", 512),
    ],
)
def test_a_size_in_pixels_takes_its_ladder(name: str, size: int) -> None:
    run, plain = built(f"{name}@{size}"), built(name)
    schedule = run.recipe.schedule
    assert run.model is not None
    assert vars(run.model)["schedule"] == schedule
    assert schedule.grids[0] == (1, 1) and schedule.grids[-1] == (size // 16, size // 16)
    assert run.recipe.data.size == size
    assert run.recipe.tokenizer.get("scales", len(schedule)) == len(schedule)
    same = size == plain.recipe.data.size
    assert (run.recipe == plain.recipe) is same
    assert (schedule == plain.recipe.schedule) is same


def test_a_tokenizer_has_sizes_too() -> None:
    run = built("var-vae@512")
    assert run.model is None and run.recipe.schedule == built("var-d36-s").recipe.schedule


@pytest.mark.parametrize(
    ("like", "config", "settings"),
    [
        ("var-d16", {"vae": VAE, "var": VAR}, {"top_k": 5}),
        (
            "mvar-d16",
            {"vae": VAE, "mvar": {"depth": 1, "num_classes": 5, "patch_nums": (1, 2)}},
            {"top_k": 5},
        ),
        ("flowar-s", {"vae": tiny_flowar.VAE, "model": tiny_flowar.MODEL}, {"steps": 4}),
    ],
)
def test_an_image_of_another_size_is_drawn(
    like: str, config: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = replace(published.CHECKPOINTS[like], config=config)
    monkeypatch.setitem(published.CHECKPOINTS, "toy", toy)
    images = Pipeline(hub.find("random/toy@512"))(labels=[1, 2], **settings)
    assert images.shape == (2, 3, 64, 64)  # 2 pixels a cell
    assert images[0].std() > 0.01 and not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    "name", ["var-d0", "var-d017", "mvar-d1000", "var-d", "code-d8", "d8", "var-d8 ", "@256", ""]
)
def test_a_name_that_follows_no_rule_is_refused(name: str) -> None:
    message = f"unknown checkpoint {name.partition('@')[0]}; there are: var-d16, .*mvar-d<depth>"
    with pytest.raises(UserError, match=message) as caught:
        hub.find(f"random/{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", ["", "300", "0256", "256@512", "256px", "²56"])
def test_a_size_without_a_ladder_is_refused(pixels: str) -> None:
    message = f"var-d8@{pixels}: no ladder .* are: var-d8@256, var-d8@512, var-d8@1024"
    with pytest.raises(UserError, match=message):
        hub.find(f"random/var-d8@{pixels}")


@pytest.mark.parametrize("name", ["llamagen-b", "llamagen-vq16"])
def test_a_size_of_what_decides_no_scales_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}@512: .* no scales.* 256 pixels only: leave @512"):
        hub.find(f"random/{name}@512")


@pytest.fixture
def random_run(tiny_run: Run) -> Run:
    """A run of the tiny recipe with untrained parts."""
    recipe = tiny_run.recipe
    assert recipe.backbone is not None
    return Run(recipe, untrained(recipe.tokenizer, "a"), untrained(recipe.backbone, "b"))


@RUNS
def test_weights_are_always_the_same(random_run: Run) -> None:
    backbone = random_run.recipe.backbone
    assert random_run.model is not None and backbone is not None
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = untrained(backbone, "again", dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(random_run.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.to(theirs.dtype), theirs)
    other = untrained(backbone, "other", seed=1)
    assert not torch.equal(next(random_run.model.parameters()), next(other.parameters()))


@RUNS
def test_predictions_depend_on_place_and_class(random_run: Run) -> None:
    pipe = Pipeline(random_run)
    *_, first = pipe.steps(labels=[0, 1, 2], guidance=0, temperature=1e-6)
    images = pipe.decode(first)
    assert not torch.equal(images[0], images[1])
    assert images.flatten(2).std(dim=-1).min() > 0.05


@pytest.mark.parametrize("tiny_run", ["mvar"], indirect=True)
def test_a_state_neither_stays_nor_goes_at_once(random_run: Run) -> None:
    assert random_run.model is not None
    layers = [part for part in random_run.model.modules() if isinstance(part, Mamba2)]
    fresh = Mamba2(2048)  # what it draws itself, of 64 heads
    for layer in layers:
        for name in Mamba2.FLOAT32:
            ours, theirs = (part.get_parameter(name) for part in (layer, fresh))
            spread = theirs.std().item()
            assert (ours >= theirs.min() - spread).all() and (ours <= theirs.max() + spread).all()
        taps = layer.conv1d.weight
        assert taps.std() == pytest.approx(1 / math.sqrt(taps.shape[-1]), rel=0.1)
    first, second = (layer.A_log for layer in layers)
    assert not torch.equal(first, second)
