"""Real images: found out once, kept with a checksum, and never mixed up."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.data.odd import picture
from var.data.folder import image_folder
from var.data.images import TensorImages
from var.errors import UserError
from var.evaluation import reference
from var.metrics.features import SmallClassifier
from var.metrics.networks import Seen, identity
from var.metrics.scores import Moments

PIXELS = torch.randint(0, 256, (40, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()


class Eye(nn.Module):
    """A network that sees the mean of each channel and, if asked, the first row of pixels."""

    num_features, labelled = 3, False

    def __init__(self, name: str = "FD-eye", scale: float = 1.0, *, spatial: bool = False) -> None:
        super().__init__()
        self.name, self.scale, self.spatial = name, nn.Parameter(torch.tensor(scale)), spatial
        self.looks = 0

    def forward(self, image: Tensor) -> Seen:
        """Return what it sees."""
        self.looks += len(image)
        x = self.scale * image.float()
        return Seen(x.mean(dim=(2, 3)), spatial=x[:, 0, 0] if self.spatial else None)


def data(count: int = 40) -> TensorImages:
    return TensorImages("pixels", PIXELS[:count], torch.zeros(count, dtype=torch.int64), ["any"])


def find(eye: Eye, home: Path | None, split: str = "test", count: int = 40) -> reference.Reference:
    return reference.of_data(data(count), split, eye, batch_size=7, home=home)


def test_moments_are_those_of_all_images(tmp_path: Path) -> None:
    found = find(Eye(spatial=True), None)
    features = PIXELS.double().mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(found.moments.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.moments.covariance, np.cov(features.T), rtol=1e-5)
    assert found.images == 40 and found.spatial is not None and len(found.spatial.mean) == 4
    assert found.shown is not None and found.shown.shape == (40, 3)


def test_they_are_found_out_once(tmp_path: Path) -> None:
    first, again = Eye(spatial=True), Eye(spatial=True)
    old, new = find(first, tmp_path), find(again, tmp_path)
    assert (first.looks, again.looks) == (40, 0)
    assert (
        old.plain()
        == new.plain()
        == {
            "name": "pixels test",
            "images": 40,
            "size": 4,
            "sha256": old.sha256,
        }
    )
    for a, b in ((old.moments, new.moments), (old.spatial, new.spatial)):
        assert a is not None and b is not None
        assert np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance)
    assert old.shown is not None and new.shown is not None and torch.equal(old.shown, new.shown)


def test_other_data_splits_and_networks_have_their_own(tmp_path: Path) -> None:
    find(Eye(), tmp_path)
    others = ((Eye(scale=2.0), "test", 40), (Eye(), "train", 40), (Eye(), "test", 9))
    for eye, split, count in others:
        find(eye, tmp_path, split, count)
        assert eye.looks == count
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_damaged_is_found_out_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = find(Eye(), tmp_path)
    (path,) = tmp_path.iterdir()
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1  # a single bit of the data
    for damaged in (bytes(blob), b"short"):
        path.write_bytes(damaged)
        eye = Eye()
        with caplog.at_level(logging.WARNING):
            new = find(eye, tmp_path)
        assert eye.looks == 40 and f"{path} is damaged" in caplog.text
        assert np.array_equal(old.moments.mean, new.moments.mean)


def test_a_file_gives_its_images_and_for_inception_its_moments(tmp_path: Path) -> None:
    path, mu = tmp_path / "adm.npz", np.arange(3.0)
    moments = {"mu": mu, "sigma": np.eye(3), "mu_s": np.ones(4), "sigma_s": np.eye(4)}
    np.savez(path, arr_0=PIXELS.permute(0, 2, 3, 1).numpy(), **moments)
    own = reference.of_file(path, Eye(), batch_size=7, home=None)
    np.testing.assert_allclose(own.moments.mean, find(Eye(), None).moments.mean)
    theirs = reference.of_file(path, Eye("FID"), batch_size=7, home=None)
    assert theirs.moments.mean.tolist() == [0, 1, 2] and theirs.spatial is not None
    assert theirs.images == 40 and theirs.shown is not None and len(theirs.shown) == 40


def test_moments_without_images_serve_inception_only(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    found = reference.of_file(path, Eye("FID"), batch_size=7, home=None)
    assert isinstance(found.moments, Moments) and found.shown is None and found.images == 0
    with pytest.raises(UserError, match="FD-eye would need: use features=inception"):
        reference.of_file(path, Eye(), batch_size=7, home=None)
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(UserError, match=r"mu is \(2,\), not \(3,\)"):
        reference.of_file(path, Eye("FID"), batch_size=7, home=None)


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="1 images are too few"):
        find(Eye(), None, count=1)


def test_folders_of_equal_names_have_their_own_and_so_do_files_that_changed(tmp_path: Path) -> None:
    home, eye = tmp_path / "home", Eye()
    signs = []
    for folder, shift in (("a", 0), ("b", 1), ("a", 2)):
        picture(shift, (8, 8)).save(made(tmp_path / folder) / "0.png")
        picture(shift + 5, (8, 8)).save(made(tmp_path / folder) / "1.png")
        images = image_folder(root=tmp_path / folder, train=False, size=8, workers=0).plain()
        signs.append(reference.of_data(images, "test", eye, batch_size=7, home=home).sha256)
    assert len(set(signs)) == 3 and eye.looks == 6


def made(folder: Path) -> Path:
    """Return the folder of a class, made if it is not there."""
    (folder / "any").mkdir(parents=True, exist_ok=True)
    return folder / "any"


def test_networks_that_differ_in_more_than_weights_have_their_own() -> None:
    torch.manual_seed(0)
    state = SmallClassifier(mean=[0.5], deviation=[0.3]).state_dict()
    signs = set()
    for shape in ({}, {"padding": 1}, {"side": 32}, {"mean": [0.4]}, {"name": "FD-other"}):
        network = SmallClassifier(**{"mean": [0.5], "deviation": [0.3], **shape})  # type: ignore[arg-type]
        network.load_state_dict(state)
        signs.add(identity(network))
    assert len(signs) == 5


def test_a_place_where_nothing_can_be_kept_costs_only_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        assert find(Eye(), tmp_path / "home").images == 40
    assert "is not kept" in caplog.text
