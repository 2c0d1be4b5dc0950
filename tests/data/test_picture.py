"""Pictures: files of all kinds, masks, and how they are brought to a size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from var.data.picture import fitted, fitted_mask, read_image, read_mask, resized
from var.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
COLOUR = Image.fromarray(PIXELS)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255


def written(image: Image.Image, folder: Path) -> Path:
    image.save(folder / "image.png")
    return folder / "image.png"


def test_an_image_is_the_same_from_a_file_from_memory_and_from_a_tensor(tmp_path: Path) -> None:
    given = (written(COLOUR, tmp_path), COLOUR, TENSOR, (TENSOR * 255).round().byte())
    for image in map(read_image, given):
        assert torch.equal(image, TENSOR) and image.dtype == torch.float32


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_images_of_all_modes_come_in_colour(mode: str, tmp_path: Path) -> None:
    grey = COLOUR.convert("L").point(lambda level: 255 * (level > 99))
    image = grey.convert(mode)
    read = read_image(image if mode == "CMYK" else written(image, tmp_path))
    assert read.shape == (3, 6, 9)
    assert torch.equal(read[0] > 0.5, torch.from_numpy(np.array(grey) > 99))


def test_transparent_parts_of_a_mask_are_white(tmp_path: Path) -> None:
    image = COLOUR.convert("L").point(lambda _: 0).convert("RGBA")
    image.putpixel((2, 1), (0, 0, 0, 0))
    mask = read_mask(written(image, tmp_path))
    assert mask.nonzero().tolist() == [[1, 2]]


def test_a_mask_is_a_threshold_of_levels_of_any_type() -> None:
    levels = torch.tensor([[0.0, 0.4, 0.6, 1.0]])
    for mask in (levels, levels.half(), levels > 0.5, (levels * 255).byte(), levels[None]):
        assert read_mask(mask).tolist() == [[False, False, True, True]]
    assert not read_mask(torch.ones(2, 2, dtype=torch.uint8)).any()  # of 255 levels, as ever


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = written(COLOUR, tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    for name in ("image.png", "text.png", "missing.png", "."):
        with pytest.raises(UserError, match=r"^cannot read photo=.*: \w.*$"):
            read_image(tmp_path / name, "photo")


@pytest.mark.parametrize("shape", [(6, 9), (1, 6, 9), (2, 3, 6, 9), (3, 0, 9), (3,)])
def test_a_tensor_that_is_no_image_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^image must be of shape \(3, H, W\), got \("):
        read_image(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 6, 9), (1, 1, 6, 9), (0, 9), (9,)])
def test_a_tensor_that_is_no_mask_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^mask must be of shape \(H, W\) or \(1, H, W\), got \("):
        read_mask(torch.zeros(shape))


@pytest.mark.parametrize("level", [-0.1, 1.1, 255.0, float("nan"), float("inf"), 1, True])
def test_numbers_that_are_no_levels_are_named(level: float) -> None:
    with pytest.raises(UserError, match="^image must hold levels: uint8, or floating-point"):
        read_image(torch.full((3, 6, 9), level))
    if level is not True:
        with pytest.raises(UserError, match="^mask must hold levels"):
            read_mask(torch.full((6, 9), level))


def test_what_is_neither_file_nor_image_nor_tensor_is_named() -> None:
    for given in (PIXELS, PIXELS.tolist()):
        with pytest.raises(UserError, match=r"^image is of type .*: give a file, an image of Pill"):
            read_image(given)
    with pytest.raises(UserError, match="^cannot read mask=.* floating-point numbers"):
        read_mask(Image.new("F", (4, 4)))


def test_the_centre_is_cut_out_of_images_and_masks_alike() -> None:
    wide = torch.zeros(3, 8, 20)
    wide[:, :, 6:14] = 1
    assert fitted(wide, (8, 8)).min() == 1
    assert fitted(wide, (4, 4)).min() > 0.9  # the filter reaches beyond the edge
    assert fitted_mask(wide[0].bool(), (8, 8)).all()
    assert not fitted_mask(wide[0].bool(), (8, 20))[:, :6].any()
    thin = torch.zeros(6000, 4000, dtype=torch.bool)
    thin[4321, 1234] = True
    assert fitted_mask(thin, (6, 4)).nonzero().tolist() == [[4, 1]]
    exact = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert fitted(exact, (5, 7)) is exact and resized(exact, (5, 7)) is exact
    assert resized(wide, (4, 10)).shape == (3, 4, 10)
