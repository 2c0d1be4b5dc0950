"""Data sets and transforms; the published validation transform is in the golden tests."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.fakes import fake_fashion_mnist
from var.data.images import digits, fashion_mnist
from var.data.transforms import centre_crop
from var.errors import UserError


def test_digits_are_real_images_in_range_with_labels() -> None:
    data = digits(size=16)
    image, label = data.__getitems__(range(100))
    assert image.shape == (100, 3, 16, 16) and image.min() == 0 and image.max() == 1
    assert torch.equal(image[:, 0], image[:, 2])
    assert set(label.tolist()) == set(range(10)) and len(data.classes) == 10


def test_training_and_test_digits_do_not_overlap() -> None:
    train, test = digits(), digits(train=False)
    assert (len(train), len(test)) == (1500, 297)


def test_fashion_mnist_is_padded_around_the_original_pixels(tmp_path: Path) -> None:
    pixels = fake_fashion_mnist(tmp_path)
    image, label = fashion_mnist(root=tmp_path).__getitems__(range(5))
    assert image.shape == (5, 3, 32, 32) and label.tolist() == [0, 1, 2, 3, 4]
    assert not image[:, :, :2].any()
    assert torch.equal((image[:, 0, 2:30, 2:30] * 255).round().byte(), pixels)


def test_missing_fashion_mnist_is_told_in_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*data\.download=true"):
        fashion_mnist(root=tmp_path)


@pytest.mark.parametrize("resize", ["lanczos", "halving"])
@pytest.mark.parametrize("size", [(50, 40), (40, 50), (17, 33)])
def test_the_centre_crop_has_its_size_and_range(size: tuple[int, int], resize: str) -> None:
    crop = centre_crop(16, resize=resize)(Image.linear_gradient("L").resize(size))
    assert crop.shape == (3, 16, 16) and crop.min() >= 0 and crop.max() <= 1
