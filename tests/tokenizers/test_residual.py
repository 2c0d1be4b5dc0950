"""The residual quantizer: encoding, teacher forcing and sampling are one and the same writing."""

import pytest
import torch

from tests.tiny import CHANNELS, SCHEDULE, VOCABULARY, tokenizer
from var.schedule import Schedule
from var.tokenizers.residual import MultiScaleQuantizer

LATENT = torch.randn(2, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(3))


def test_what_is_encoded_reads_back_as_it_was_seen_while_encoding() -> None:
    quantizer = tokenizer()
    *_, (_, _, written) = quantizer.steps(LATENT, SCHEDULE)
    again = quantizer.blank(2, SCHEDULE).write(*quantizer.quantise(LATENT, SCHEDULE))
    assert torch.equal(written.read(SCHEDULE[:]), again.read(SCHEDULE[:]))
    assert torch.equal(written.latent, again.latent)


def test_every_scale_brings_the_latent_closer() -> None:
    quantizer = MultiScaleQuantizer(vocabulary=256, channels=CHANNELS, scales=4, blend=0)
    with torch.no_grad():
        quantizer.codebook.weight.normal_().mul_(0.7)
        quantizer.codebook.weight[0] = 0  # adding nothing is always possible
    gaps = [
        (LATENT - canvas.latent).square().mean() for *_, canvas in quantizer.steps(LATENT, SCHEDULE)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.5 * LATENT.square().mean()


def test_writing_leaves_the_old_canvas_as_it_was() -> None:
    quantizer = tokenizer()
    tokens = quantizer.quantise(LATENT, SCHEDULE)
    blank = quantizer.blank(2, SCHEDULE)
    one = blank.write(tokens[0])
    before = one.latent.clone()
    one.write(*tokens[1:])
    assert (blank.done, one.done) == (0, 1)
    assert torch.equal(one.latent, before) and not blank.latent.any()


def test_a_mixture_of_a_single_code_is_that_code() -> None:
    quantizer = tokenizer()
    ids = torch.tensor([[3], [VOCABULARY - 1]])
    mixture = torch.nn.functional.one_hot(ids, VOCABULARY).float()
    blank = quantizer.blank(2, SCHEDULE)
    torch.testing.assert_close(blank.write(mixture).latent, blank.write(ids).latent)


def test_reading_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="scale 1 cannot be read: only 0 scales are written"):
        tokenizer().blank(1, SCHEDULE).read(SCHEDULE[:2])


def test_a_latent_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(5, 5\).*\(4, 4\)"):
        tokenizer().quantise(torch.zeros(1, CHANNELS, 5, 5), SCHEDULE)


@pytest.mark.parametrize("sharing", [0, 1, 3, 4])
@pytest.mark.parametrize("scales", [1, 2, 7, 10])
def test_every_phi_index_exists_and_they_never_fall(sharing: int, scales: int) -> None:
    quantizer = MultiScaleQuantizer(vocabulary=4, channels=2, scales=scales, sharing=sharing)
    indices = [quantizer.phi_index(k, scales) for k in range(scales)]
    assert indices == sorted(indices) and set(indices) <= set(range(len(quantizer.phi)))
    if sharing == 0:
        assert indices == list(range(scales))


def test_published_ties_between_phis_fall_as_published() -> None:
    quantizer = MultiScaleQuantizer(vocabulary=4, channels=2, scales=10)
    assert [quantizer.phi_index(k, 10) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_autocast_changes_neither_ids_nor_the_latent() -> None:
    quantizer = tokenizer()
    exact = quantizer(LATENT, SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        low = quantizer(LATENT, SCHEDULE)
        ids = quantizer.quantise(LATENT, SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(exact.tokens, ids, strict=True))
    assert torch.equal(exact.latent, low.latent)


def test_gradients_pass_straight_through() -> None:
    latent = LATENT.clone().requires_grad_()
    tokenizer()(latent, SCHEDULE).latent.sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(LATENT))


def test_rectangles_and_a_first_scale_of_several_cells_work() -> None:
    schedule = Schedule.scales([(2, 1), (3, 2), (4, 6)])
    quantizer = tokenizer(scales=3)
    tokens = quantizer.quantise(torch.randn(1, CHANNELS, 4, 6), schedule)
    assert [ids.shape for ids in tokens] == [(1, 2), (1, 6), (1, 24)]
    assert quantizer.blank(1, schedule).write(*tokens).read(schedule[:]).shape == (1, 32, CHANNELS)
