"""The whole tokenizer: pixels to ids and back."""

import pytest
import torch

from var.schedule import Schedule
from var.tokenizers.canvas import Kept, keep_masks
from var.tokenizers.multiscale import MultiScaleVQ

SCHEDULE = Schedule.scales([1, 2, 4])


@pytest.fixture(scope="module")
def vq() -> MultiScaleVQ:
    """A tokenizer of 8x8 images with random weights."""
    torch.manual_seed(0)
    made = MultiScaleVQ(
        vocabulary=16, channels=4, width=8, multipliers=(1, 2), blocks=1, scales=3, groups=4
    )
    torch.nn.init.normal_(made.quantizer.codebook.weight)
    return made.eval()


def images(count: int = 3) -> torch.Tensor:
    """Return random images in [0, 1]."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_decoding_what_was_encoded_equals_the_training_reconstruction(vq: MultiScaleVQ) -> None:
    canvas = vq.blank(3, SCHEDULE).write(*vq.encode(images(), SCHEDULE))
    reconstruction, _ = vq(images(), SCHEDULE)
    torch.testing.assert_close(vq.decode(canvas), reconstruction.clamp(0, 1), atol=1e-5, rtol=0)


def test_an_image_has_the_same_ids_alone_and_in_a_batch(vq: MultiScaleVQ) -> None:
    together = vq.encode(images(), SCHEDULE)
    alone = vq.encode(images()[1:2], SCHEDULE)
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


def test_images_of_odd_size_are_refused(vq: MultiScaleVQ) -> None:
    with pytest.raises(ValueError, match=r"multiples of 2, got \(7, 8\)"):
        vq.encode(torch.zeros(1, 3, 7, 8), SCHEDULE)


def test_bf16_decoding_stays_within_a_grey_level_or_two_of_float32(vq: MultiScaleVQ) -> None:
    canvas = vq.blank(3, SCHEDULE).write(*vq.encode(images(), SCHEDULE))
    exact = vq.decode(canvas)
    with torch.autocast("cpu", torch.bfloat16):
        low = vq.decode(canvas)
    assert (exact - low).abs().max() < 0.02


def test_kept_cells_stay_and_the_others_are_new(vq: MultiScaleVQ) -> None:
    source = vq.encode(images(1), SCHEDULE)
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1
    keep = keep_masks(mask, SCHEDULE)
    other = [(ids + 1) % 16 for ids in source]
    canvas = Kept(vq.blank(1, SCHEDULE), source, keep).write(*other)
    expected = [torch.where(k, s, o) for k, s, o in zip(keep, source, other, strict=True)]
    assert keep[0].all() and 0 < keep[2].sum() < 16
    assert torch.equal(canvas.latent, vq.blank(1, SCHEDULE).write(*expected).latent)
    assert torch.equal(
        canvas.read(SCHEDULE[:]), vq.blank(1, SCHEDULE).write(*expected).read(SCHEDULE[:])
    )


def test_keeping_everything_brings_the_source_back_even_from_mixtures(vq: MultiScaleVQ) -> None:
    source = vq.encode(images(1), SCHEDULE)
    canvas = Kept(vq.blank(1, SCHEDULE), source, keep_masks(torch.ones(4, 4), SCHEDULE))
    noise = [torch.rand(1, ids.shape[1], 16).softmax(-1) for ids in source]
    torch.testing.assert_close(
        canvas.write(*noise).latent, vq.blank(1, SCHEDULE).write(*source).latent
    )
