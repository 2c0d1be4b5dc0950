"""Image folders: what is listed, what is cropped, and what is said of damaged files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from var.data.batches import Batches, loader
from var.data.files import Files
from var.data.folder import image_folder
from var.data.transforms import centre_crop, to_tensor
from var.errors import UserError

FILES = {
    "train/cat/a.JPEG": (40, 30),
    "train/cat/b.png": (30, 40),
    "train/dog/a.JPEG": (64, 64),
    "train/emu/a.JPEG": (33, 70),
    "val/dog/x.JPEG": (35, 50),
    "val/emu/x.JPEG": (50, 35),
}


def paint(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=rng, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in two splits; of cats there are none to test with."""
    for seed, (name, size) in enumerate(FILES.items()):
        paint(tmp_path / name, size, seed)
    (tmp_path / "train/.thumbnails").mkdir()
    (tmp_path / "train/dog/notes.txt").touch()
    return tmp_path


def training(root: Path, **changes: object) -> Files:
    return image_folder(**{"root": root, "train": True, "size": 16, **changes})  # type: ignore[arg-type]


def test_classes_are_folders_and_test_images_are_labelled_as_training_images_are(
    root: Path,
) -> None:
    train, test = training(root), training(root, train=False)
    assert train.classes == test.classes == ["cat", "dog", "emu"]
    image, label = train.__getitems__(range(4))
    assert image.shape == (4, 3, 16, 16) and label.tolist() == [0, 0, 1, 2]
    assert image.dtype == torch.float32 and 0 <= image.min() < image.max() <= 1
    assert test.__getitems__([0, 1]).label.tolist() == [1, 2]
    assert (train.name, train.size, len(train), len(test)) == ("image_folder", 16, 4, 2)


def test_without_splits_the_classes_lie_in_the_root_itself(root: Path) -> None:
    train, test = training(root / "train"), training(root / "train", train=False)
    assert len(train) == len(test) == 4 and train.classes == ["cat", "dog", "emu"]


def test_the_crop_is_a_function_of_the_number_whatever_the_batch(root: Path) -> None:
    data = training(root)
    alone = [data.__getitems__([number]).image[0] for number in range(12)]
    assert torch.equal(
        data.__getitems__([9, 2, 5]).image, torch.stack([alone[i] for i in (9, 2, 5)])
    )
    assert all(not torch.equal(alone[i], alone[i + 4]) for i in range(8)), "epochs differ"
    assert all(not torch.equal(a, training(root, seed=1).__getitems__([0]).image[0]) for a in alone)


def test_a_resumed_run_sees_the_same_crops_with_any_number_of_workers(root: Path) -> None:
    whole, rest = (
        loader(training(root, workers=workers), Batches(4, 2, seed=3, start=start))
        for workers, start in ((0, 0), (2, 3))
    )
    batches = [next(whole) for _ in range(5)]
    for batch in batches[3:]:
        again = next(rest)
        assert torch.equal(again.image, batch.image) and torch.equal(again.label, batch.label)


def test_crops_are_pieces_of_the_enlarged_image_half_of_them_mirrored(root: Path) -> None:
    data = training(root, size=60, enlarge=64 / 60)  # of 64 pixels: nothing is resized
    with Image.open(root / "train/dog/a.JPEG") as image:
        whole = to_tensor(image)
    places, mirrored = set(), 0
    for epoch in range(60):
        crop = data.__getitems__([2 + 4 * epoch]).image[0]
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(whole[:, top:, left:][:, :60, :60], crop.flip(-1) if flip else crop)
        ]
        assert len(found) == 1
        places.add(found[0][:2])
        mirrored += found[0][2]
    assert {top for top, _ in places} == {left for _, left in places} == set(range(5))
    assert 18 <= mirrored <= 42


def test_without_flips_the_same_places_are_cropped(root: Path) -> None:
    for number in range(8):
        plain, mirrored = (
            training(root, flip=flip).__getitems__([number]).image[0] for flip in (False, True)
        )
        assert torch.equal(plain, mirrored) or torch.equal(plain, mirrored.flip(-1))


def test_tests_and_caches_see_the_centre(root: Path) -> None:
    with Image.open(root / "train/cat/a.JPEG") as image:
        centre = centre_crop(16)(image)
    data = training(root)
    assert torch.equal(data.plain().__getitems__([0, 4]).image, torch.stack([centre, centre]))
    test = training(root, train=False)
    assert torch.equal(test.__getitems__([0, 3]).image, test.plain().__getitems__([0, 1]).image)
    assert data.crop is not None, "the data set itself goes on cropping at random"


def test_how_images_are_resized_is_said_once_for_crops_and_centres(root: Path) -> None:
    halving = {"resize": "halving", "enlarge": 1.0, "flip": False}
    with Image.open(root / "train/dog/a.JPEG") as image:
        centre = centre_crop(16, enlarge=1.0, resize="halving")(image)
        boxes = to_tensor(image.reduce(4))
    assert (centre - boxes).abs().max() < 3 / 255, "64 pixels are halved twice, and that is all"
    random = training(root, **halving).__getitems__([2]).image[0]  # there is one place only
    plain = training(root, **halving).plain().__getitems__([2]).image[0]
    assert torch.equal(random, centre) and torch.equal(plain, centre)
    assert not torch.equal(centre_crop(16, enlarge=1.0)(Image.fromarray(pixels(root))), centre)


def pixels(root: Path) -> np.ndarray:
    with Image.open(root / "train/dog/a.JPEG") as image:
        return np.array(image)


def test_it_can_be_sent_to_another_process(root: Path) -> None:
    data = training(root)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.__getitems__([7]).image, data.__getitems__([7]).image)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line_where_that_is_wanted(
    root: Path, workers: int
) -> None:
    path = root / "train/dog/a.JPEG"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="^cannot read the image .*data.unusable=skip$") as error:
        list(loader(training(root, workers=workers, unusable="raise"), [[0, 1], [2, 3]]))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_names_that_are_no_text_are_read_as_well(root: Path) -> None:
    name = "caf\udce9.png"  # a byte that is not UTF-8
    try:
        paint(root / "train/dog" / name, (20, 20), 9)
    except (OSError, ValueError):
        pytest.skip("this file system knows text only")
    assert len(training(root).__getitems__(range(5)).image) == 5


@pytest.mark.parametrize(
    ("remove", "changes", "message"),
    [
        ("", {"size": 0}, "size=0"),
        ("", {"enlarge": 0.5}, "enlarge=0.5"),
        ("", {"seed": -1}, "seed=-1"),
        ("", {"resize": "nearest"}, "resize=nearest: use lanczos or halving"),
        ("", {"root": "/nowhere"}, "no folders of images below /nowhere.*data.root"),
        ("train", {}, "train is missing beside .*val"),
        ("val", {"train": False}, "val is missing beside .*train"),
        ("train/emu", {"train": False}, "val/emu is a class that .*train has no folder of"),
        ("train/*/*.*", {}, "no images in the folders below .*train"),
    ],
)
def test_bad_input_is_named(
    root: Path, remove: str, changes: dict[str, object], message: str
) -> None:
    for path in sorted(root.glob(remove), reverse=True) if remove else ():
        for inner in sorted(path.rglob("*"), reverse=True):
            inner.rmdir() if inner.is_dir() else inner.unlink()
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        training(**{"root": root, **changes})  # type: ignore[arg-type]


def test_the_config_makes_both_splits(root: Path) -> None:
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate

    with initialize_config_module("var.configs", version_base="1.3"):
        cfg = compose("encode", ["data=image_folder", f"data.root={root}", "data.size=16",
                                 "tokenizer.run=x", "out=x"])  # fmt: skip
    train, test = instantiate(cfg.data.train), instantiate(cfg.data.test)
    assert (len(train), len(test), train.workers, train.size) == (4, 2, 4, 16)
    assert train.crop is not None and train.crop.flip and test.crop is None


def test_a_digest_tells_crops_and_files_apart_but_not_places(root: Path, tmp_path: Path) -> None:
    whole = training(root)
    assert whole.digest() == training(root).digest() == whole.plain().digest()
    assert whole.digest() != training(root, enlarge=1.0).digest()
    assert whole.digest() != training(root, resize="halving").digest()
    moved = tmp_path / "moved"
    (root / "train").rename(moved)
    assert training(moved).digest() == whole.digest()
    (moved / "cat/a.JPEG").unlink()
    assert training(moved).digest() != whole.digest()
