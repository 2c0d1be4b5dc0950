"""What a reader of the documentation has: data sets, pictures, networks; here small ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from tests.data.odd import picture
from tests.docs.pages import ROOT
from var.metrics.features import SmallClassifier

_WNIDS = ("n01440764", "n01443537", "n01484850")


def folders(place: Path) -> None:
    """Make folders of pictures, as ImageNet comes."""
    for split, count in (("train", 4), ("val", 2)):
        for label, wnid in enumerate(_WNIDS):
            home = place / split / wnid
            home.mkdir(parents=True)
            for i in range(count):
                picture(10 * label + i, (40, 36)).save(home / f"{i}.png")


def data(place: Path) -> None:
    """Make a folder that is any data set that a command asks for, and has the networks too."""
    folders(place)
    _fashion(place / "FashionMNIST/raw")
    for split in ("train", "test"):
        _arrays(place / f"cifar10_{split}.npz", 32)
    for name in ("fashion_mnist_cnn", "cifar10_cnn"):
        network(place / f"{name}.safetensors")


def network(place: Path) -> None:
    """Make a feature network with random weights, of the shape that its config names."""
    text = (ROOT / "configs/features" / f"{place.stem}.yaml").read_text(encoding="utf-8")
    shape = {k: v for k, v in yaml.safe_load(text).items() if k not in ("_target_", "path")}
    state = SmallClassifier(**shape).state_dict()
    save_file({key.removeprefix("layers."): value for key, value in state.items()}, place)


def batch(place: Path) -> None:
    """Make a batch of images as the evaluation suite of guided diffusion takes it."""
    _arrays(place, 256)


def photo(place: Path) -> None:
    """Make a photograph."""
    picture(size=(64, 48)).save(place)


def mask(place: Path) -> None:
    """Make a mask for it: its middle."""
    area = np.zeros((48, 64), np.uint8)
    area[12:36, 16:48] = 255
    Image.fromarray(area).save(place)


def few(place: Path) -> None:
    """Make a folder of four pictures."""
    place.mkdir(parents=True)
    for i in range(4):
        picture(i, (32, 32)).save(place / f"{i}.png")


def text_features(place: Path) -> None:
    """Make features of one text as flan-t5-xl has them, padded, and where they are valid."""
    rng = torch.Generator().manual_seed(0)
    valid = (torch.arange(120) < 20)[None]
    features = torch.randn(1, 120, 2048, generator=rng)
    save_file({"features": features, "valid": valid}, place)


def script(place: Path) -> None:
    """Make a script of the checkout, in an environment where all is installed."""
    place.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "scripts" / place.name, place)
    lines = ['root="$PWD"', 'bin="$(dirname "$(command -v var-sample)")"', "environment() { :; }"]
    (place.parent / "environment.sh").write_text("\n".join(lines), encoding="utf-8")


def empty(place: Path) -> None:
    """Make a file with nothing in it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()


def _fashion(place: Path, count: int = 24) -> None:
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, magic, array in (("images-idx3", 0x803, pixels), ("labels-idx1", 0x801, labels)):
            header = np.array([magic, *array.shape], ">i4").tobytes()
            (place / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())


def _arrays(place: Path, side: int, count: int = 24) -> None:
    pixels = np.stack([np.asarray(picture(i, (side, side))) for i in range(count)])
    np.savez(place, arr_0=pixels, arr_1=np.arange(count) % 10)
