"""Pictures to and from the page."""

import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import make_run
from var.app import pictures
from var.app.job import Drawn
from var.errors import UserError
from var.png import read_settings

NOTES = {"model": "some/where", "labels": [3, 0], "number": 2, "seed": 7}
WHITE = torch.ones(3, 4, 4)


def drawn(size: int) -> Drawn:
    frames = tuple(torch.full((4, 3, size, size), 50 * k, dtype=torch.uint8) for k in (1, 2))
    return Drawn(frames, 2, 2, turns=2, seconds=1.0, cold=False, notes=NOTES)


def test_an_upload_is_read_as_images_are(tmp_path: Path) -> None:
    Image.new("L", (6, 4), 255).save(tmp_path / "photo.jpg")
    assert pictures.upload(tmp_path / "photo.jpg", megapixels=1).equal(torch.ones(3, 4, 6))


@pytest.mark.parametrize("cut", [0, 40])
def test_a_damaged_upload_is_named_and_its_place_is_not(tmp_path: Path, cut: int) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").write_bytes((tmp_path / "photo.png").read_bytes()[:cut])
    with pytest.raises(UserError, match="cannot read mask=photo.png") as told:
        pictures.upload(tmp_path / "photo.png", "mask", megapixels=1)
    assert str(tmp_path) not in str(told.value)


def test_a_small_file_may_hold_too_large_a_picture(tmp_path: Path) -> None:
    Image.new("1", (2000, 1000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="bomb.png has 2000 x 1000 pixels: up to 1.5 million"):
        pictures.upload(tmp_path / "bomb.png", megapixels=1.5)


def bomb(path: Path) -> Path:
    """Write a file that says it holds 400 million pixels."""
    size = struct.pack(">II", 20000, 20000) + bytes([1, 0, 0, 0, 0])
    check = struct.pack(">I", zlib.crc32(b"IHDR" + size))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + size + check + bytes(4) + b"IDAT"
    )
    return path


def test_a_picture_that_pillow_refuses_is_told_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="up to 24 million are taken"):
        pictures.upload(bomb(tmp_path / "bomb.png"), megapixels=24)


def layers(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    """Write layers that are painted on in the last column of the first row."""
    paths = [folder / f"layer_{index}.png" for index in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        layer = Image.new("RGBA", size)
        layer.putpixel((size[0] - 1, 0), (255, 0, 100, 90))
        layer.save(path)
    return paths


def test_what_is_painted_is_what_is_not_transparent(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2)).save(tmp_path / "empty.png")
    empty = tmp_path / "empty.png"
    assert pictures.painted([], megapixels=1) is None
    assert pictures.painted([empty], megapixels=1) is None
    area = pictures.painted([*layers(tmp_path, (3, 2)), empty], megapixels=1)
    assert area is not None and area.tolist() == [[False, False, True], [False] * 3]


def test_layers_that_no_browser_paints_are_told(tmp_path: Path) -> None:
    for sizes, line in (
        ([(3, 2), (2, 3)], "differ in size"),
        ([(3, 2)] * 9, "9 layers"),
        ([(1500, 1000)], "layer_0.png has 1500 x 1000 pixels"),
    ):
        with pytest.raises(UserError, match=line):
            pictures.painted(layers(tmp_path, *sizes), megapixels=1)
    with pytest.raises(UserError, match="layer bomb.png has far too many"):
        pictures.painted([bomb(tmp_path / "bomb.png")], megapixels=1)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot read what is painted"):
        pictures.painted([tmp_path / "bad.png"], megapixels=1)


@pytest.mark.parametrize(("size", "seen"), [((6, 4), (512, 341)), ((900, 1600), (288, 512))])
def test_what_is_painted_on_is_small_and_of_the_pictures_shape(size, seen) -> None:
    image = torch.rand(3, size[1], size[0], generator=torch.Generator().manual_seed(0))
    canvas = pictures.canvas(image)
    assert canvas.shape == (3, seen[1], seen[0]) and canvas.dtype == torch.uint8


@pytest.mark.parametrize(
    ("image", "painted", "mask", "line"),
    [
        (None, None, WHITE, "no picture yet"),
        (WHITE, None, None, "no area is marked"),
        (WHITE, None, WHITE * 0, "the mask marks nothing"),
        (WHITE, WHITE[0] > 0, WHITE, "two areas are marked"),
    ],
)
def test_an_edit_without_sense_is_told(image, painted, mask, line: str) -> None:
    with pytest.raises(UserError, match=line):
        pictures.edit("inpaint", image, painted, mask, {"paste": True})


def test_an_edit_is_what_was_marked() -> None:
    run, half = make_run(), WHITE.clone()
    half[:, :, :2] = 0
    made, words = pictures.edit("outpaint", WHITE, None, half, {"paste": True})
    assert words == {"name": "outpaint", "image": "uploaded", "paste": True, "mask": "uploaded"}
    share = made.around(run.tokenizer, run.recipe.schedule).share  # of 8 x 8 pixels
    assert share.tolist() == [[1.0] * 4 + [0.0] * 4] * 8


def test_saved_images_know_their_settings_and_seeds(tmp_path: Path) -> None:
    paths, sheet = pictures.save(drawn(8), tmp_path)
    names = [
        f"where-class{label}-seed{seed}.png" for label, seed in ((3, 7), (3, 8), (0, 9), (0, 10))
    ]
    assert [path.name for path in paths] == names
    assert read_settings(paths[2]) == {"model": "some/where", "labels": [0], "seed": 9}
    assert read_settings(sheet) == NOTES
    with Image.open(sheet) as image:
        assert image.size == (18, 18)


@pytest.mark.parametrize(("size", "tile"), [(16, 128), (100, 100), (256, 128)])
def test_a_film_suits_the_eye(size: int, tile: int) -> None:
    film = pictures.film(drawn(size).frames)
    assert film.shape == (3, 4 * tile + 3 * 2, 2 * tile + 2)
    assert film[:, 0, 0].tolist() == [50] * 3 and film[:, 0, -1].tolist() == [100] * 3


def test_a_film_shows_the_first_few_only() -> None:
    many = torch.zeros(16, 3, 128, 128, dtype=torch.uint8)
    assert pictures.film([many]).shape == (3, 4 * 128 + 3 * 2, 128)
