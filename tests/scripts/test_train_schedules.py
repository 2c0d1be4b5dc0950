"""`var-train` on ladders and rasters: what goes together, and what does not."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from tests.conftest import TOYS, make_run
from tests.training.words import CELLS, RASTER, SCALES, forget, run, train
from var import store
from var.errors import UserError
from var.scripts import encode

DIGITS = ("data=digits", "data.train.size=8")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a run of 8x8 images of each family."""
    forget()
    monkeypatch.chdir(tmp_path)
    for family in TOYS:
        store.save(tmp_path / family, make_run(family=family))
    return tmp_path


def test_a_raster_is_trained_on_a_cache_as_on_pixels(place: Path) -> None:
    with initialize_config_module("var.configs", version_base="1.3"):
        words = ["tokenizer.run=raster", "out=cache", "device=cpu", "progress=false", *DIGITS]
        encode.main(compose("encode", words))
    words = ["tokenizer.run=raster", "trainer.steps=2"]
    pixels = run(place / "pixels", *words, *DIGITS, base=RASTER)
    codes = run(place / "codes", *words, "data=latents", "data.root=cache", base=RASTER)
    assert pixels.keys() == codes.keys()
    assert all(torch.equal(tensor, codes[name]) for name, tensor in pixels.items())
    trained = store.load(place / "codes/raster").recipe
    assert trained.schedule == TOYS["raster"].schedule
    assert trained.backbone is not None
    assert (trained.backbone["grid"], trained.backbone["vocabulary"]) == (4, 32)


def test_a_run_is_gone_on_with_as_the_begin_of_another(place: Path) -> None:
    words = ["tokenizer.run=raster", "trainer.steps=1", *DIGITS]
    run(place / "a", *words, base=RASTER)
    tuned = ["name=tuned", "tokenizer=trained", "init.run=a/raster", *words, *CELLS[:-1]]
    train(place / "b", *tuned, "trainer.steps=1", "trainer.cpu=true")
    assert store.load(place / "b/tuned").recipe.backbone == store.load("a/raster").recipe.backbone


GENERATOR = ("name=x", "tokenizer=trained")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*GENERATOR, "tokenizer.run=raster", "backbone=raster", *SCALES],
            r"cell by cell, not by scales that end on 4 x 4: say schedule=\{raster: 4\}",
        ),
        (
            [*GENERATOR, "tokenizer.run=raster", "backbone=var", *CELLS],
            r"VAR decides whole scales, but schedule=\{'raster': 4\} is of single cells",
        ),
        (
            [*GENERATOR, "tokenizer.run=flowar", "backbone=raster", *SCALES],
            "tokenizer.run=flowar makes tokens of channels=4, which Raster does not predict",
        ),
        (
            [*GENERATOR, "tokenizer.run=flowar", "backbone=flowar", *CELLS],
            "FlowAR decides whole scales, but schedule",
        ),
        (
            [*GENERATOR, "tokenizer.run=var", "backbone=raster", *CELLS],
            r"tokenizer.run=var makes whole scales, but schedule is the raster of \(4, 4\): use",
        ),
        (
            [*GENERATOR, "tokenizer.run=raster", "backbone=raster", "schedule={raster:3}"],
            r"ends on a grid of \(3, 3\), .* 4 cells a side in this tokenizer: change it, or",
        ),
        (
            ["name=x", "tokenizer=multiscale", "tokenizer.multipliers=[1,1]", *CELLS],
            r"MultiScaleVQ makes whole scales, but schedule=\{'raster': 4\} is of single cells",
        ),
        (
            ["name=x", "tokenizer=vq", "tokenizer.multipliers=[1,1]", *SCALES],
            r"cell by cell, not by scales that end on 4 x 4: say schedule=\{raster: 4\}",
        ),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(
    place: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(place, *words, *DIGITS)
    assert "\n" not in str(caught.value) and not (place / "x").exists()
