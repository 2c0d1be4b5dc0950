"""`var-evaluate` on a tiny run and fake data, through the real configs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file

import var
from tests.data.odd import picture
from tests.fakes import fake_fashion_mnist
from var import store
from var.errors import UserError
from var.metrics.features import SmallClassifier, small_classifier
from var.models.var import VAR
from var.pipeline import load
from var.pixels import to_uint8
from var.published import evaluation
from var.recipe import Data, Recipe
from var.schedule import Schedule
from var.scripts.evaluate import main
from var.tokenizers.multiscale import MultiScaleVQ


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 32x32 images in ten classes, fake Fashion-MNIST, a feature network."""
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    classifier = SmallClassifier(mean=[0.3], deviation=[0.3])
    classifier.layers[-5].weight.data *= 30  # distances are to be of the size of real ones
    net = classifier.state_dict()
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


def evaluate(place: Path, *overrides: str, out: Path | None = None) -> dict[str, Any]:
    """Return the report that the command writes."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data.root": place, "out": out or folder, "batch_size": 4, "spread": 3}
        settings |= {"features.path": place / "net.safetensors", "model": place / "run"}
        settings |= {"statistics": "null", "progress": "false"}
        settings |= dict(override.split("=", 1) for override in overrides)
        for group, needless in (("data", "data.root"), ("features", "features.path")):
            if settings.get(group) in ("none", "digits_cnn"):
                del settings[needless]
        with initialize_config_module("var.configs", version_base="1.3"):
            main(compose("evaluate", overrides=[f"{k}={v}" for k, v in settings.items()]))
        report = json.loads(Path(str(settings["out"]), "report.json").read_text())
    assert isinstance(report, dict)
    return report


def value(report: dict[str, Any], name: str = "FD-FashionMNISTCNN") -> float:
    return float(report["metrics"][name]["value"])


def test_reconstructions_are_measured_over_the_whole_split(place: Path) -> None:
    report = evaluate(place, "mode=reconstruction")
    assert report["images"] == 5 and value(report, "psnr") > 0
    assert -1 <= value(report, "ssim") <= 1 and report["metrics"]["psnr"]["spread"] > 0
    codebook = report["codebook"]
    assert len(codebook["usage_per_scale"]) == len(codebook["perplexity_per_scale"]) == 2
    assert all(0 < share <= 5 / 8 for share in codebook["usage_per_scale"][:1])
    same = evaluate(place, "mode=reconstruction", "batch_size=2")
    assert value(same, "psnr") == pytest.approx(value(report, "psnr"), abs=1e-4)


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
    report = evaluate(place, *data, "mode=reconstruction", "batch_size=1")
    assert (report["images"], report["unusable"]) == (6, 3)
    assert (report["reference"]["name"], report["reference"]["images"]) == ("image_folder test", 6)
    assert value(report, "psnr") == pytest.approx(value(good, "psnr"), abs=2e-3)


def test_samples_are_as_many_of_each_class_and_do_not_depend_on_the_batch(place: Path) -> None:
    once = evaluate(place, "number=2", "sampling.guidance=0.5")
    again = evaluate(place, "number=2", "sampling.guidance=0.5", "batch_size=3")
    assert once["images"] == 20 and once["per_class"] == 2
    assert once["speed"]["images_per_second"] > 0 and once["speed"]["calls_per_batch"] == 2
    assert once["sampling"]["guidance"] == [1.0, 1.5]
    assert (once["decoding"], once["cache"]) == ({"name": "sequential"}, {"name": "static"})
    for name in ("label_agreement", "precision", "recall"):
        assert value(once, name) == value(again, name)
    assert value(once) == pytest.approx(value(again), abs=1e-4)
    assert once["metrics"]["FD-FashionMNISTCNN"]["spread"] > 0


def test_a_run_that_was_killed_goes_on_and_gives_the_same(place: Path, tmp_path: Path) -> None:
    whole = evaluate(place, "number=2", out=tmp_path / "whole")
    parts = sorted((tmp_path / "whole/parts").glob("*.safetensors"))
    assert len(parts) == 5
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    times = {}
    for path in (half / "parts").glob("*.safetensors"):
        if path.name in ("00001.safetensors", "00004.safetensors"):
            path.unlink()
        else:
            times[path.name] = path.stat().st_mtime_ns
    (half / "report.json").unlink()
    again = evaluate(place, "number=2", out=half)
    assert again["metrics"] == whole["metrics"]
    assert all((half / "parts" / name).stat().st_mtime_ns == time for name, time in times.items())


def test_other_settings_in_the_same_folder_are_refused(place: Path, tmp_path: Path) -> None:
    evaluate(place, "number=1", out=tmp_path)
    with pytest.raises(UserError, match=r"sampling.top_k is 0 there, 3 here"):
        evaluate(place, "number=1", "sampling.top_k=3", out=tmp_path)
    assert evaluate(place, "number=1", "spread=2", out=tmp_path)["draws"] == 2


def test_samples_are_written_for_other_suites_and_read_from_files(
    place: Path, tmp_path: Path
) -> None:
    report = evaluate(place, "number=2", "npz=true", out=tmp_path)
    with np.load(tmp_path / "samples.npz") as file:
        images = file["arr_0"]
    assert images.shape == (20, 32, 32, 3)
    pipe = load(place / "run")
    drawn = to_uint8(pipe(range(10), number=2, batch_size=4)).permute(0, 2, 3, 1).numpy()
    rows = sorted(image.tobytes() for image in images)
    assert rows == sorted(image.tobytes() for image in drawn)
    assert not np.array_equal(images, drawn), "class by class"
    stored = ("model=null", f"samples={tmp_path}/samples.npz")
    again = evaluate(place, *stored, out=tmp_path / "again")
    assert value(again) == pytest.approx(value(report), abs=1e-4)
    assert "label_agreement" not in again["metrics"] and again["weights"] is None
    itself = evaluate(place, *stored, f"reference={tmp_path}/samples.npz", "data=none")
    assert value(itself) == pytest.approx(0, abs=1e-6)
    assert value(itself, "precision") == value(itself, "recall") == 1


def test_the_best_of_several_are_measured_as_samples_are(place: Path, tmp_path: Path) -> None:
    net = place / "net.safetensors"
    search = ("search=best_of", "search.number=3", f"search.features.path={net}")
    report = evaluate(place, "number=2", *search, "npz=true", out=tmp_path)
    assert report["search"]["number"] == 3 and report["images"] == 20
    scorer = var.ClassLogProbability(
        small_classifier(net, mean=[0.286], deviation=[0.353], padding=2)
    )
    labels = [label for label in range(10) for _ in range(2)]
    pipe = load(place / "run")
    best = var.best_of(pipe, labels, number=3, scorer=scorer, batch_size=4).images[:, 0]
    with np.load(tmp_path / "samples.npz") as file:
        rows = sorted(image.tobytes() for image in file["arr_0"])
    assert rows == sorted(x.numpy().tobytes() for x in to_uint8(best).permute(0, 2, 3, 1))


def test_images_are_resized_before_they_are_measured(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of 32 pixels, those to be measured have 64"):
        evaluate(place, "number=1", "size=64")
    np.savez(tmp_path / "real.npz", arr_0=np.zeros((5, 64, 64, 3), np.uint8))
    how = (f"reference={tmp_path}/real.npz", "features.side=null", "number=1")
    report = evaluate(place, *how, "npz=true", "size=64", out=tmp_path)
    assert report["size"] == report["reference"]["size"] == 64
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (10, 64, 64, 3)
    stored = ("model=null", f"samples={tmp_path}/samples.npz", "data=none", "size=32")
    with pytest.raises(UserError, match="is for images of 32 pixels"):
        evaluate(place, *stored, f"reference={tmp_path}/real.npz")


def test_reconstructions_are_not_written_as_samples(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "vq")
    text = (tmp_path / "vq/config.yaml").read_text()
    recipe = Recipe.parse(text, "vq")
    run = store.load(place / "run")
    store.save(tmp_path / "vq", store.Run(replace(recipe, backbone=None), run.tokenizer))
    with pytest.raises(UserError, match="npz=true writes samples"):
        evaluate(place, f"model={tmp_path}/vq", "npz=true")


def test_two_processes_measure_what_one_does(place: Path, tmp_path: Path) -> None:
    words = [
        f"model={place}/run", f"data.root={place}", f"features.path={place}/net.safetensors",
        "statistics=null", "number=2", "batch_size=4", "spread=3", "progress=false",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "var.scripts.evaluate", *words, f"out={tmp_path}/two"]
    subprocess.run(command, check=True, timeout=300, env=environment)
    two = json.loads((tmp_path / "two/report.json").read_text())
    assert two["metrics"] == evaluate(place, "number=2")["metrics"]


def test_published_settings_and_figures_stand_beside(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = replace(evaluation("var-d16"), per_class=1, size=32)
    monkeypatch.setattr("var.scripts.evaluate.evaluation", lambda name: published)
    report = evaluate(place, "preset=paper", "sampling.top_p=0.9", out=tmp_path)
    sampling = report["sampling"]
    assert (report["images"], report["preset"]) == (10, "paper")
    assert (sampling["guidance"], sampling["top_k"], sampling["top_p"]) == ([1.0, 2.5], 900, 0.9)
    text = (tmp_path / "report.md").read_text()
    assert "3.55" in text and "VAR README" in text and "sampling.top_p 0.9 instead of 0.96" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mode=both", "mode=both"),
        ("reference=val", "reference=val"),
        ("reference=none.npz", "cannot read none.npz"),
        ("out=/dev/null/figures", "cannot write out=/dev/null/figures"),
        ("samples=x.npz", "and not both"),
        ("features=digits_cnn", "FD-DigitsCNN is for images of 16 pixels"),
        ("model=null", "say what to measure"),
        ("preset=papers", "preset=papers: use paper"),
        ("preset=paper", "no published figures of"),
        ("number=0", "number must be 1 or more"),
        ("features=none", "say features=…"),
        ("data=none", "nothing to compare with"),
        ("features.path=none.safetensors", "no feature network at none.safetensors"),
        ("data.root=/nowhere", "no Fashion-MNIST below data.root=/nowhere"),
        ("sampling.top_k=-1", "top_k"),
    ],
)
def test_bad_input_is_named(place: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(place, override)
