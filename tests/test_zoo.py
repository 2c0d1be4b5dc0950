"""The shipped models: small, complete, and good for what they are shipped for."""

from pathlib import Path

import pytest
import torch

import var
from var.decoding.counted import Counted
from var.decoding.jacobi import Jacobi

ZOO = Path(var.__file__).parent / "zoo"
NAMES = sorted(folder.name for folder in ZOO.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", NAMES)
def test_every_model_loads_and_has_a_card(name: str) -> None:
    pipe = var.load(name)
    assert (ZOO / name / "README.md").read_text().startswith(f"# {name}\n")
    if pipe.run.model is not None:
        assert len(pipe.classes) == pipe.class_count


def test_all_of_them_take_no_more_than_40_megabytes() -> None:
    files = [path for path in ZOO.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= 40e6


def test_a_trained_model_decides_several_tokens_a_pass() -> None:
    pipe = var.load("fashion-raster")
    decoding = Counted(Jacobi(pipe.model))
    images = pipe(range(4), seed=0, decoding=decoding, batch_size=1)
    assert images.shape == (4, 3, 32, 32) and torch.isfinite(images).all()
    assert sum(decoding.runs) / 4 < len(pipe.schedule) / 2
