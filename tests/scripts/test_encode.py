"""`var-encode` on a tiny run and fake data, through the real configs and the real command line."""

import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image

from tests.conftest import make_run
from var import store
from var.data.latents import Latents
from var.data.transforms import centre_crop
from var.errors import UserError
from var.schedule import Schedule
from var.scripts.encode import main
from var.tokenizers.multiscale import MultiScaleVQ


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a run of 8x8 images, and five images in two classes."""
    monkeypatch.chdir(tmp_path)
    store.save(tmp_path / "run", make_run())
    for i in range(5):
        path = tmp_path / "data/train" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = torch.Generator().manual_seed(i)
        pixels = torch.randint(0, 256, (12, 10 + i, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return tmp_path


BASE = {
    "tokenizer.run": "run", "data": "image_folder", "data.root": "data", "data.size": "8",
    "data.workers": "0", "out": "cache", "device": "cpu", "shard_size": "2", "batch_size": "2",
    "progress": "false",
}  # fmt: skip


def words(*overrides: str) -> list[str]:
    changes = dict(override.split("=", 1) for override in overrides)
    return [f"{key}={value}" for key, value in {**BASE, **changes}.items()]


def encode(*overrides: str) -> Latents:
    """Run the command on the composed config; return the cache as a training run opens it."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(cfg := compose("encode", words(*overrides)))
        cfg = compose("train", ["data=latents", f"data.root={cfg.out}", "name=x", "schedule=[1]"])
    return instantiate(cfg.data.train)


def command(patch: pytest.MonkeyPatch, *overrides: str) -> int:
    """Run the command as if typed; return its exit code."""
    patch.setattr(sys, "argv", ["var-encode", *overrides])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_data_set_becomes_a_cache_of_its_centres_and_their_mirror_images(place: Path) -> None:
    cache, run = encode("flips=true"), make_run()
    names = [place / f"data/train/{name}.png" for name in ("cat/0", "cat/2", "cat/4", "dog/1")]
    images = []
    for path in [*names, place / "data/train/dog/3.png"]:
        with Image.open(path) as image:
            images.append(centre_crop(8)(image))
    codes, labels = cache.__getitems__(range(10))
    schedule, tokenizer = run.recipe.schedule, run.tokenizer
    expected = tokenizer.encode(torch.stack(images), schedule)  # type: ignore[operator]
    mirrored = tokenizer.encode(torch.stack(images).flip(-1), schedule)  # type: ignore[operator]
    reader = cache.reader(tokenizer, schedule)  # type: ignore[arg-type]
    for group, plain, mirror in zip(
        reader.encode(codes, schedule), expected, mirrored, strict=True
    ):
        assert torch.equal(group[::2], plain) and torch.equal(group[1::2], mirror)
    assert labels.tolist() == 6 * [0] + 4 * [1] and list(cache.classes) == ["cat", "dog"]
    assert (cache.name, cache.size, cache.index.numbers) == ("image_folder", 8, "uint8")
    names = [f"{i:05d}.safetensors" for i in range(3)]
    assert sorted(path.name for path in (place / "cache").iterdir()) == [*names, "cache.yaml"]


def test_unusable_images_are_left_out_and_listed_however_often_a_run_was_stopped(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = encode("out=whole").__getitems__(range(5))
    for name in ("cat/0", "cat/4"):  # the very first one, and the first of the second shard
        (place / f"data/train/{name}.png").write_bytes(b"no image")
    (place / "data/train/dog/1.png").rename(place / "data/train/dog/1.jpe")
    cache = encode("data.workers=1")
    assert len(cache) == 2 and cache.index.images == 4
    left = cache.__getitems__(range(2))
    assert torch.equal(left.image, whole.image[[1, 4]]) and left.label.tolist() == [0, 1]
    assert "2 of 4 images are unusable and left out, see cache/unusable.csv" in caplog.text
    listed = (place / "cache/unusable.csv").read_text()
    assert [line.split(",")[0] for line in listed.splitlines()[1:]] == [
        f"data/train/{name}" for name in ("cat/0.png", "cat/4.png", "dog/1.jpe")
    ]
    (place / "cache/00000.safetensors").unlink()
    assert encode().index == cache.index, "made again as it was"
    assert (place / "cache/unusable.csv").read_text() == listed


def test_a_finished_cache_is_checked_and_repaired_and_not_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    encode()
    before = {path.name: path.read_bytes() for path in (place / "cache").iterdir()}
    encode()
    assert "5 codes, 0 of 3 shards made" in caplog.text
    (place / "cache/00001.safetensors").write_bytes(b"")
    encode()
    assert "5 codes, 1 of 3 shards made" in caplog.text
    assert before == {path.name: path.read_bytes() for path in (place / "cache").iterdir()}


def test_a_tokenizer_of_any_schedule_is_given_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"schedule=\[1, 4\] is not that of run.*leave it out"):
        encode("schedule=[1,4]")
    monkeypatch.setattr(MultiScaleVQ, "any_schedule", True)
    assert encode("schedule=[1,4]").index.grids == ((1, 1), (4, 4))


def test_a_raster_becomes_a_cache_of_its_one_grid(place: Path) -> None:
    run = make_run(family="raster")
    store.save(place / "cells", run)
    cache = encode("tokenizer.run=cells", "batch_size=3")
    text = (place / "cache/cache.yaml").read_text()
    assert "grids:\n- [4, 4]\n" in text and "raster: true" in text
    assert cache.index.schedule == run.recipe.schedule and cache.index.shape == (16,)
    codes, tokenizer = cache.__getitems__([0, 3]).image, run.tokenizer
    reader = cache.reader(tokenizer, Schedule.raster(4))  # type: ignore[arg-type]
    assert [each.shape for each in reader.encode(codes, Schedule.raster(4))] == 16 * [(2, 1)]
    with pytest.raises(UserError, match=r"a cache of other settings \(shape \(16,\), not \(21,\)"):
        encode()


@pytest.mark.parametrize(
    ("family", "schedule", "message"),
    [
        ("raster", "[1,2,4]", r"cell by cell, not by scales .*: say schedule=\{raster: 4\}"),
        ("flowar", "{raster:4}", r"schedule=\{'raster': 4\} is not for this tokenizer, which mak"),
        ("var", "{raster:4}", r"is not that of run, the grids \[\(1, 1\), .*leave it out"),
    ],
)
def test_a_schedule_of_the_other_kind_is_refused(
    place: Path, family: str, schedule: str, message: str
) -> None:
    store.save(place / "run", make_run(family=family))
    with pytest.raises(UserError, match=message) as caught:
        encode(f"schedule={schedule}")
    assert "\n" not in str(caught.value) and not (place / "cache/cache.yaml").exists()


FAULTS = {
    "schedule=8": "schedule must be a list of sides",
    "out=/dev/null/cache": "cannot write out=/dev/null/cache",
    "dtype=bf16": "dtype=bf16: use fp16 or fp32",
    "split=val": "split=val: use train or, where data has one, test",
    "split=test": "data/val is missing",
    "shard_size=0": "shard_size must be 1 or more, got 0",
    "batch_size=0": "batch_size must be 1 or more, got 0",
    "data.size=16": "schedule ends on a grid of (4, 4), but image_folder images of 16 pixels",
    "data.root=nowhere": "no folders of images below nowhere",
    "tokenizer.run=nothing": "there is no run folder and no model named nothing",
    "device=tpu": "unknown device 'tpu'",
}


@pytest.mark.parametrize("word", FAULTS)
def test_a_fault_of_the_user_is_one_line_and_nothing_is_written(
    word: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *words(word)) == 2
    text = capsys.readouterr().err
    assert text.startswith("var-encode: error: ") and FAULTS[word] in text
    assert text.count("\n") == 1 and not (place / "cache").exists()


def test_a_cache_is_not_encoded_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    with initialize_config_module("var.configs", version_base="1.3"):
        again = ["tokenizer.run=run", "data=latents", "data.root=cache", "out=again", "device=cpu"]
        with pytest.raises(UserError, match="var-encode needs images: name the data set"):
            main(compose("encode", again))
        with pytest.raises(UserError, match="split=test: use train"):
            main(compose("encode", [*again, "split=test"]))


def test_help_explains_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    with initialize_config_module("var.configs", version_base="1.3"):
        names = [f"{name}=" for name in compose("encode") if name != "tokenizer"]
    assert not [name for name in [*names, "tokenizer.run="] if name not in text]
    assert "var-encode tokenizer.run=fashion-vq" in text
