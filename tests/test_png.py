"""PNGs: 8-bit values, grids, and the settings inside."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from var.errors import UserError
from var.pixels import to_uint8
from var.png import grid, read_settings, save_png


def test_eight_bits_are_the_nearest() -> None:
    values = torch.tensor([-0.1, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 1.1])
    images = values.expand(1, 3, 1, 7)
    assert to_uint8(images)[0, 0, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every[None, None, None].float() / 255).flatten(), every)


def test_a_grid_is_filled_row_by_row() -> None:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 4)
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (3, 2 + 1 + 2, 4 + 1 + 4)
    assert sheet[0, 0].tolist() == [0] * 4 + [255] + [1] * 4
    assert sheet[0, 3].tolist() == [2] * 4 + [255] * 5
    assert grid(images, columns=9).shape == (3, 2, 4 + 2 + 4 + 2 + 4)


def test_a_grid_enlarges_by_nearest_neighbour() -> None:
    image = torch.tensor([[0.0, 1.0]]).expand(1, 3, 1, 2)
    assert grid(image, columns=1, upscale=2)[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_settings_come_back_from_the_file(tmp_path: Path) -> None:
    path, settings = tmp_path / "new" / "image.png", {"seed": 3, "name": "Ümlaut", "g": [1.0, 2.5]}
    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    save_png(path, image, settings)
    assert read_settings(path) == settings
    with Image.open(path) as file:
        assert file.size == (5, 4)
        assert file.tobytes() == image.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_files_that_fail_are_named(tmp_path: Path) -> None:
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*x\.png"):
        save_png(tmp_path / "file" / "x.png", image, {})
    with pytest.raises(UserError, match=r"cannot read .*file"):
        read_settings(tmp_path / "file")
    Image.new("RGB", (1, 1)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match=r"plain\.png holds no settings"):
        read_settings(tmp_path / "plain.png")
