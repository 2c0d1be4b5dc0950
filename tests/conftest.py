"""What all tests share: those marked `gpu` are skipped where there is none, and a tiny run."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from tests import tiny
from var import store
from var.recipe import Data, Recipe, Spec, build
from var.sampling import Sampling
from var.schedule import Schedule
from var.store import Run

# The first example pays for imports and warm-up: a limit on its time would fail now and then.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class Toy(NamedTuple):
    """How the parts of a tiny run are built.

    Attributes:
        tokenizer, backbone: specs, as they are stored.
        schedule: of 8x8 images.
        louder: keywords of a backbone that reacts to classes and seeds; None: shake it.
        sampling: what the run recommends.
    """

    tokenizer: Spec
    backbone: Spec
    schedule: Schedule
    louder: Spec | None
    sampling: Sampling


LADDER, GRID = [1, 2, 4], 4
SCALES = Schedule.scales(LADDER)
SIZE = {"width": 32, "heads": 2, "classes": 3}
LADDERED = {**SIZE, "channels": 4, "ladder": LADDER}
CODES = {"vocabulary": 32, "channels": 4, "width": 8, "multipliers": [1, 2], "blocks": 1}
VAE = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
STACKS = {"encoder_depth": 1, "decoder_depth": 1, "head_depth": 1, "head_width": 16, "cross": True}
TOYS = {
    "var": Toy(
        {"_target_": "var.tokenizers.multiscale.MultiScaleVQ", **CODES, "scales": 3, "groups": 4},
        {"_target_": "var.models.var.VAR", **LADDERED, "depth": 2, "vocabulary": 32},
        SCALES,
        {"init_gate": 1.0, "init_head": 10.0},
        Sampling(guidance=1.5, top_k=20),
    ),
    "flowar": Toy(
        {"_target_": "var.tokenizers.continuous.KL", "vae": VAE},
        {"_target_": "var.models.flowar.FlowAR", **LADDERED, **STACKS},
        SCALES,
        None,
        Sampling(guidance=1.5, steps=3),
    ),
    "raster": Toy(
        {"_target_": "var.tokenizers.singlescale.VQ", **CODES, "inner": 8, "groups": 4},
        {
            "_target_": "var.models.raster.Raster",
            **SIZE,
            "depth": 2,
            "vocabulary": 32,
            "grid": GRID,
            "hidden": 48,
        },
        Schedule.raster(GRID),
        None,
        Sampling(guidance=1.5, top_k=20),
    ),
}
TOYS["mvar"] = TOYS["var"]._replace(
    backbone={**TOYS["var"].backbone, "_target_": "var.models.mvar.MVAR"}
)
# For tests of all families: parametrises what `tiny_run` returns, and whatever is made of it.
RUNS = pytest.mark.parametrize("tiny_run", TOYS, indirect=True)
# Of families that decide scale after scale and remember keys, for caches that compress them.
KEYED_RUNS = pytest.mark.parametrize("tiny_run", ["var", "flowar"], indirect=True)


def make_run(seed: int = 0, family: str = "var") -> Run:
    """Return a complete run of 8x8 images in three classes, with random weights."""
    toy = TOYS[family]
    torch.manual_seed(seed)
    model = build({**toy.backbone, **(toy.louder or {})}, "the model", device="cpu")
    if toy.louder is None:
        tiny.shaken(model, scale=0.25, seed=seed)
    recipe = Recipe(
        tokenizer=toy.tokenizer,
        schedule=toy.schedule,
        backbone=toy.backbone,
        data=Data(f"toy-{seed}", ("cat", "Dog", "T-shirt/top"), size=8),
        sampling=toy.sampling,
    )
    tokenizer = build(toy.tokenizer, "the tokenizer", device="cpu")
    return Run(recipe, tokenizer.eval(), model.eval())


@pytest.fixture(scope="session")
def tiny_run(request: pytest.FixtureRequest) -> Run:
    """A complete run with random weights, under `RUNS` of each family; not to be changed."""
    return make_run(family=getattr(request, "param", "var"))


@pytest.fixture
def run_folder(tiny_run: Run, tmp_path: Path) -> Path:
    """A run folder of its own for each test."""
    store.save(tmp_path / "run", tiny_run)
    return tmp_path / "run"
