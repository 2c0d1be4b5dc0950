"""Files that cannot be used: replaced in training, left out elsewhere, and always told."""

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.odd import FINE, GLASS, UNUSABLE, picture
from var.data.batches import Batches, loader
from var.data.files import Files
from var.data.folder import image_folder
from var.data.images import Batch
from var.data.transforms import centre_crop, to_tensor, upright
from var.errors import UserError
from var.unusable import write_unusable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixty files in three classes: six are unusable, one of these by its name; eight are odd."""
    for i in range(46):
        folder = tmp_path / "images" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i:02d}.png")
    makes = {**FINE, **{name: make for name, (make, _) in UNUSABLE.items()}}
    for i, (name, make) in enumerate(makes.items()):
        make(tmp_path / "images" / "abc"[i % 3] / name)
    return tmp_path / "images"


def images(root: Path, **changes: object) -> Files:
    return image_folder(**{"root": root, "train": True, "size": 16, **changes})  # type: ignore[arg-type]


def epoch(data: Files, start: int = 0) -> list[Batch]:
    """Return an epoch of 59 files in five batches of eleven."""
    return list(islice(loader(data, Batches(len(data), 11, seed=0, start=start)), 5 - start))


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    return all(
        torch.equal(x, y)
        for a, b in zip(ours, theirs, strict=True)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_look_at_all_finds_exactly_the_unusable_files_and_tells_each_once(
    root: Path, workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = images(root, workers=workers)
    assert len(data) == 59 and len(data.unusable) == 1, "the renamed one is known by its name"
    read = list(loader(data, [list(range(i, min(i + 8, 59))) for i in range(0, 59, 8)]))
    assert sum(len(batch.image) for batch in read) == 59
    write_unusable(tmp_path / "unusable.csv", data.unusable)
    with (tmp_path / "unusable.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {Path(row["path"]).name: row["reason"] for row in rows}
    assert found.keys() == UNUSABLE.keys()
    assert all(why in found[name] for name, (_, why) in UNUSABLE.items())
    assert [row["path"] for row in rows] == sorted(data.unusable)
    told = [line for line in caplog.messages if line.startswith("unusable image ")]
    assert sorted(Path(line.split(": ")[0]).name for line in told) == sorted(
        UNUSABLE.keys() - {"photo.dat"}
    )
    assert "1 files below" in caplog.text and "1 of them hold images" in caplog.text


def test_batches_are_full_and_the_same_whoever_reads_and_wherever_a_run_goes_on(root: Path) -> None:
    whole = epoch(images(root))
    assert [len(batch.image) for batch in whole] == 5 * [11]
    assert same(epoch(images(root, workers=2)), whole)
    assert same(epoch(images(root), start=3), whole[3:])


def test_in_training_the_next_image_stands_in_with_its_own_label(root: Path) -> None:
    data = images(root)
    names = [Path(file.decode()).name for file in data.files.tolist()]
    for name in UNUSABLE.keys() & set(names):
        index = names.index(name)
        after = next(i for i in range(index, index + 59) if names[i % 59] not in UNUSABLE) % 59
        batch = data.__getitems__([index + 59 * 4])
        assert batch.label.tolist() == [data.labels[after]]
        with Image.open(data.root / data.files[after].decode()) as image:
            assert torch.equal(batch.image[0], data.crop(image, index + 59 * 4))  # type: ignore[misc]


def test_elsewhere_they_are_left_out(root: Path) -> None:
    data = images(root)
    centres = data.plain()
    batch = centres.__getitems__(range(59))
    assert len(batch.image) == len(batch.label) == 54
    dot = [i for i, file in enumerate(data.files) if b"dot" in file]
    assert centres.__getitems__(dot).image.shape == (0, 3, 16, 16)
    assert len(data.unusable) == 1 and len(centres.unusable) == 6, "each knows what it has seen"


def test_odd_images_are_read_as_what_they_show(root: Path) -> None:
    data = images(root, train=False)
    plain, grey = picture(), picture().convert("L").convert("RGB")
    white = Image.new("RGB", plain.size, "white")
    colours = plain.quantize(16)
    alpha = Image.fromarray(np.frombuffer(GLASS, np.uint8)[np.asarray(colours)])
    pasted = Image.composite(colours.convert("RGB"), white, alpha)
    shown = {
        "grey.jpg": grey, "inks.jpg": plain, "palette.png": pasted, "glass.png": plain,
        "deep.png": grey, "sideways.jpg": plain.rotate(-90, expand=True), "called.jpg": plain,
    }  # fmt: skip
    for index, file in enumerate(data.files.tolist()):
        if (name := Path(file.decode()).name) in shown:
            expected = centre_crop(16)(shown[name])
            off = (data.__getitems__([index]).image[0] - expected).abs()
            assert off.mean() < 0.02 and off.max() < 0.12, name
    assert len(data.unusable) == 1


def test_an_image_of_floating_point_numbers_is_unusable(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "good.png")
    Image.fromarray(np.ones((16, 16), np.float32)).save(tmp_path / "b" / "map.tiff")
    data = images(tmp_path)
    assert data.__getitems__([2]).label.tolist() == [0], "after the last comes the first"
    assert [*data.unusable.values()] == ["pixels are floating-point numbers"]


def test_where_no_image_can_be_used_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in "12":
        (tmp_path / f"a/{name}.png").touch()
    data = images(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the 2 images of .* \(not an image\)"):
            data.__getitems__([1])


def test_a_folder_that_is_gone_is_not_taken_for_images_that_are_unusable(root: Path) -> None:
    data = images(root)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(UserError, match="is gone: restore it"):
        data.__getitems__([1])


@pytest.mark.parametrize("resize", ["lanczos", "halving"])
@pytest.mark.parametrize("size", [(400, 20), (30, 301), (1000, 8), (999, 331)])
def test_of_a_panorama_the_same_is_seen_as_if_all_of_it_were_resized(
    size: tuple[int, int], resize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.byte().numpy())
    part = centre_crop(16, resize=resize)(image)
    monkeypatch.setattr("var.data.transforms._LONG", 10**6)
    assert (centre_crop(16, resize=resize)(image) - part).abs().max() < 1.5 / 255


def test_a_long_strip_needs_no_memory_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    made, resize = list[int](), Image.Image.resize

    def counting(
        self: Image.Image, size: tuple[int, int], *args: object, **more: object
    ) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", counting)
    centre_crop(256)(Image.new("RGB", (20_000, 9)))
    assert sum(made) == 256 * 256, "as a whole it would have 184 million pixels"


def test_colours_are_those_of_pillow_where_nothing_is_odd() -> None:
    assert torch.equal(to_tensor(upright(picture())), to_tensor(picture()))
