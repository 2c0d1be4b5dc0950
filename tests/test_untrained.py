"""Published sizes with random weights, and the name that they go by."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import RUNS
from var import hub, published
from var.errors import UserError
from var.pipeline import Pipeline
from var.store import Run
from var.untrained import untrained


@pytest.mark.parametrize(
    "name", ["var-d16", "var-d30", "var-d36-s", "var-vae", "flowar-s", "flowar-h"]
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
    with pytest.raises(UserError, match="unknown checkpoint var-d17"):
        hub.find("random/var-d17")


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
    again = untrained(backbone, "again", dtype=torch.bfloat16)
    for ours, theirs in zip(random_run.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.bfloat16(), theirs)
    other = untrained(backbone, "other", seed=1)
    assert not torch.equal(next(random_run.model.parameters()), next(other.parameters()))


@RUNS
def test_predictions_depend_on_place_and_class(random_run: Run) -> None:
    pipe = Pipeline(random_run)
    *_, first = pipe.steps(labels=[0, 1, 2], guidance=0, temperature=1e-6)
    images = pipe.decode(first)
    assert not torch.equal(images[0], images[1])
    assert images.flatten(2).std(dim=-1).min() > 0.05
