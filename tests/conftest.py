"""What all tests share: those marked `gpu` are skipped where there is none, and a tiny run."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from var import store
from var.models.var import VAR
from var.recipe import Data, Recipe
from var.sampling import Sampling
from var.schedule import Schedule
from var.store import Run
from var.tokenizers.multiscale import MultiScaleVQ

# The first example pays for imports and warm-up: a limit on its time would fail now and then.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def make_run(seed: int = 0) -> Run:
    """Return a complete run of 8x8 images in three classes, with random weights."""
    ladder = [1, 2, 4]
    common = {"vocabulary": 32, "channels": 4}
    tokenizer = {"width": 8, "multipliers": [1, 2], "blocks": 1, "scales": 3, "groups": 4}
    backbone = {"depth": 2, "width": 32, "heads": 2, "classes": 3, "ladder": ladder}
    torch.manual_seed(seed)
    recipe = Recipe(
        tokenizer={"_target_": "var.tokenizers.multiscale.MultiScaleVQ", **common, **tokenizer},
        schedule=Schedule.scales(ladder),
        backbone={"_target_": "var.models.var.VAR", **common, **backbone},
        data=Data(f"toy-{seed}", ("cat", "Dog", "T-shirt/top"), size=8),
        sampling=Sampling(guidance=1.5, top_k=20),
    )
    # Larger than VAR starts out: predictions are to differ from class to class.
    model = VAR(**common, **backbone, init_gate=1.0, init_head=10.0)
    return Run(recipe, MultiScaleVQ(**common, **tokenizer).eval(), model.eval())


@pytest.fixture(scope="session")
def tiny_run() -> Run:
    """A complete run with random weights; not to be changed."""
    return make_run()


@pytest.fixture
def run_folder(tiny_run: Run, tmp_path: Path) -> Path:
    """A run folder of its own for each test."""
    store.save(tmp_path / "run", tiny_run)
    return tmp_path / "run"
