"""`var-evaluate` on a tiny run and fake data, through the real configs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file

from tests.data.odd import picture
from tests.fakes import fake_fashion_mnist
from var import store
from var.errors import UserError
from var.metrics.features import SmallClassifier
from var.models.var import VAR
from var.recipe import Data, Recipe
from var.schedule import Schedule
from var.scripts.evaluate import main
from var.tokenizers.multiscale import MultiScaleVQ


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 32x32 images in ten classes, fake Fashion-MNIST, a feature network."""
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    net = SmallClassifier(mean=[0.3], deviation=[0.3]).state_dict()
    names = {key.removeprefix("layers."): value for key, value in net.items()}
    save_file(names, folder / "net.safetensors")
    fake_fashion_mnist(folder)
    ladder, common = [1, 2], {"vocabulary": 8, "channels": 4}
    vq = {"width": 4, "multipliers": [1] * 5, "blocks": 0, "scales": 2, "groups": 2}
    backbone = {"depth": 1, "width": 16, "heads": 2, "classes": 10, "ladder": ladder}
    recipe = Recipe(
        {"_target_": "var.tokenizers.multiscale.MultiScaleVQ", **common, **vq},
        Schedule.scales(ladder),
        {"_target_": "var.models.var.VAR", **common, **backbone},
        data=Data("fashion_mnist", tuple("abcdefghij"), 32),
    )
    model = VAR(**common, **backbone)
    store.save(folder / "run", store.Run(recipe, MultiScaleVQ(**common, **vq), model))
    return folder


def evaluate(place: Path, *overrides: str) -> dict[str, Any]:
    """Return the figures that the command writes."""
    out = place / "figures.json"
    settings = {"model": place / "run", "data.root": place, "out": out, "batch_size": 4}
    settings["features.path"] = place / "net.safetensors"
    settings |= dict(override.split("=", 1) for override in overrides)
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("evaluate", overrides=[f"{k}={v}" for k, v in settings.items()]))
    figures = json.loads(out.read_text())
    assert isinstance(figures, dict)
    return figures


def test_reconstructions_are_measured_over_the_whole_split(place: Path) -> None:
    figures = evaluate(place, "mode=reconstruction")
    assert figures["images"] == 5 and figures["psnr"] > 0
    assert len(figures["usage_per_scale"]) == len(figures["perplexity_per_scale"]) == 2
    assert all(0 < share <= 5 / 8 for share in figures["usage_per_scale"][:1])


def test_images_that_are_unusable_are_left_out_and_counted(place: Path, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "images/any").mkdir(parents=True, exist_ok=True)
        picture(i, (40, 36)).save(tmp_path / f"images/any/{i}.png")
    (tmp_path / "images/any/9.dat").write_bytes((tmp_path / "images/any/5.png").read_bytes())
    data = ["data=image_folder", f"data.root={tmp_path}/images", "data.size=32", "data.workers=0"]
    good = evaluate(place, *data, "mode=reconstruction", "batch_size=2")
    assert (good["images"], good["unusable"]) == (6, 1), "the one that was renamed"
    for i in (2, 3):
        picture(i, (40, 36)).save(tmp_path / f"images/any/{i}a.png")
        (tmp_path / f"images/any/{i}b.png").write_text("no image")
    (tmp_path / "images/any/2.png").unlink()
    (tmp_path / "images/any/3.png").unlink()
    figures = evaluate(place, *data, "mode=reconstruction", "batch_size=1")
    assert (figures["images"], figures["unusable"]) == (6, 3)
    assert figures["reference"] == "image_folder test, 6 images"
    assert figures["psnr"] == pytest.approx(good["psnr"], abs=2e-3)


def test_samples_are_as_many_of_each_class_and_do_not_depend_on_the_batch(place: Path) -> None:
    once = evaluate(place, "number=2", "sampling.guidance=0.5")
    again = evaluate(place, "number=2", "sampling.guidance=0.5", "batch_size=3")
    assert (
        once["images"] == 20
        and once["images_per_second"] > 0
        and once["sampling"]["guidance"] == [1.0, 1.5]
    )
    assert once["label_agreement"] == again["label_agreement"]
    assert once["frechet_distance"] == pytest.approx(again["frechet_distance"], abs=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mode=both", "mode=both"),
        ("reference=val", "reference=val"),
        ("out=/dev/null/figures.json", "cannot write out=/dev/null/figures.json"),
        ("features.path=none.safetensors", "no feature network at none.safetensors"),
        ("data.root=/nowhere", "no Fashion-MNIST below data.root=/nowhere"),
        ("sampling.top_k=-1", "top_k"),
    ],
)
def test_bad_input_is_named(place: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(place, override)
