"""Batches of images in `.npz` files, to and fro."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from var.errors import UserError
from var.evaluation import npz

IMAGES = torch.randint(0, 256, (7, 3, 4, 5), generator=torch.Generator().manual_seed(0)).byte()


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    npz.write(path, (7, 4, 5), IMAGES.split(3))
    with np.load(path) as file:
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], IMAGES.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_in_batches(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "adm.npz"
    moments = {"mu": np.arange(2.0), "sigma": np.eye(2), "mu_s": np.ones(1), "sigma_s": np.eye(1)}
    save(path, arr_0=IMAGES.permute(0, 2, 3, 1).numpy(), **moments)
    batch = npz.Batch(path)
    assert len(batch) == 7 and [len(x) for x in batch.batches(3)] == [3, 3, 1]
    assert torch.equal(torch.cat(list(batch.batches(4))), IMAGES)
    assert batch.moments is not None and batch.moments.mean.tolist() == [0, 1]
    assert batch.spatial is not None and batch.spatial.covariance.tolist() == [[1]]


def test_moments_alone_are_a_batch_of_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2), sigma=np.eye(2))
    batch = npz.Batch(tmp_path / "stats.npz")
    assert len(batch) == 0 and batch.moments is not None and batch.spatial is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(2)}, "neither images, arr_0, nor moments"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "not uint8"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "not uint8"),
        ({"arr_0": np.array([{}], dtype=object)}, "cannot read"),
    ],
)
def test_files_of_something_else_are_named(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        npz.Batch(tmp_path / "odd.npz")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*none.npz"):
        npz.Batch(tmp_path / "none.npz")
    (tmp_path / "odd.npz").write_text("no archive")
    with pytest.raises(UserError, match="cannot read .*odd.npz"):
        npz.Batch(tmp_path / "odd.npz")
