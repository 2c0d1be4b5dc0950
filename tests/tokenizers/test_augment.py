"""What a discriminator sees: changed by chance, by one law, and gradients pass."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.tokenizers.adversarial import Adversarial, PatchDiscriminator
from var.tokenizers.augment import Augment, coloured, holed, moved

IMAGE = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def extent(zeros: Tensor) -> tuple[int, int]:
    """Return height and width of what is true in an image (H, W)."""
    return int(zeros.any(1).sum()), int(zeros.any(0).sum())


def test_a_shift_moves_whole_images_and_brings_zeros_in() -> None:
    numbered = torch.arange(1, 257).view(1, 1, 16, 16).expand(64, 3, 16, 16)
    framed, offsets = F.pad(numbered[0, 0], (2, 2, 2, 2)), set()
    for image in moved(numbered, 0.125):
        row, column = (image[0] > 0).nonzero()[0]
        first = int(image[0, row, column]) - 1
        down, right = int(row) - first // 16, int(column) - first % 16
        expected = framed[2 - down : 18 - down, 2 - right : 18 - right]
        assert torch.equal(image, expected.expand(3, 16, 16))
        offsets |= {down, right}
    assert offsets == {-2, -1, 0, 1, 2}


def test_a_hole_is_a_square_of_zeros_that_edges_may_cut() -> None:
    found = holed(torch.ones(64, 3, 16, 16), 0.5) == 0
    assert torch.equal(found[:, 0], found[:, 2])
    sizes = [extent(zeros) for zeros in found[:, 0]]
    assert [h * w for h, w in sizes] == found[:, 0].sum((1, 2)).tolist()
    assert max(h for h, _ in sizes) == max(w for _, w in sizes) == 8 and len(set(sizes)) > 4


def test_colours_change_within_their_strength_and_leave_the_pattern() -> None:
    found = coloured(IMAGE, 1.0)
    shift = (found.mean((1, 2, 3)) - IMAGE.mean((1, 2, 3))).abs()
    assert 0.3 < shift.max() <= 0.5 and shift.min() < 0.1, "brightness"
    grey, again = IMAGE.mean(1).flatten(1), found.mean(1).flatten(1)
    gain = again.std(1) / grey.std(1)
    assert gain.min() > 0.49 and gain.max() < 1.51 and gain.max() - gain.min() > 0.5, "contrast"
    match = nn.functional.cosine_similarity(again - again.mean(1, True), grey - grey.mean(1, True))
    torch.testing.assert_close(match, torch.ones(32))
    assert torch.equal(coloured(IMAGE, 0.0), IMAGE)


def test_the_device_s_chance_decides_and_each_image_has_its_own() -> None:
    change = Augment()
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(change(IMAGE[:1].repeat(4, 1, 1, 1)))
    assert torch.equal(*states)
    assert not any(torch.equal(a, b) for a, b in pairwise(states[0]))
    assert torch.equal(Augment(colour=0, translation=0, cutout=0)(IMAGE), IMAGE)


def test_gradients_pass_to_what_is_still_seen() -> None:
    image = IMAGE.clone().requires_grad_()
    Augment(colour=0)(image).sum().backward()
    assert image.grad is not None
    assert set(image.grad.unique().tolist()) == {0, 1} and 0.5 < image.grad.mean() < 1
    Augment()(image).square().sum().backward()
    assert image.grad.isfinite().all()


class Noted(nn.Module):
    """Passes images on, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image.detach() + 1)
        return image + 1


def test_both_sides_of_an_adversarial_loss_are_changed_before_they_are_judged() -> None:
    judge = PatchDiscriminator(width=8, layers=1, norm="group")
    term = Adversarial(discriminator=judge, weight=1.0, augment=Noted())
    real, guess = (IMAGE[:2] + 1) / 2, torch.zeros(2, 3, 16, 16, requires_grad=True)
    found = term(real, guess)
    torch.testing.assert_close(found["adversarial"], -judge(guess * 2).mean())
    expected = (1 - judge(real * 2)).relu().mean() / 2 + (1 + judge(guess * 2)).relu().mean() / 2
    torch.testing.assert_close(found["discriminator"], expected)
    found["adversarial"].backward()
    assert guess.grad is not None and guess.grad.any()
