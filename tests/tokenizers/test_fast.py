"""The fast decoder: the same pixels, whatever the layout, the number type and the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from var.schedule import Schedule
from var.tokenizers import autoencoder
from var.tokenizers.autoencoder import Upsample, layout
from var.tokenizers.multiscale import MultiScaleVQ

SCHEDULE = Schedule.scales([1, 2, 4])


def tokenizer(width: int = 8) -> MultiScaleVQ:
    made = MultiScaleVQ(
        vocabulary=16, channels=4, width=width, multipliers=(1, 2), blocks=1, scales=3, groups=4
    )
    tiny.shaken(made, scale=0.15)
    return made.eval()


def latent(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_enlarging_and_convolving_is_one_convolution(
    batch: int, channels: int, height: int, width: int
) -> None:
    layer = Upsample(channels).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last)
    plain = layer(x)  # under autograd
    with torch.no_grad():
        folded = layer(x)
    assert plain.shape == folded.shape == (batch, channels, 2 * height, 2 * width)
    torch.testing.assert_close(folded, plain.detach(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_fast_decoder_gives_the_same_pixels() -> None:
    plain, z = tokenizer(), latent()
    fast = plain.fast(torch.float32)
    torch.testing.assert_close(fast.pixels(z), plain.pixels(z), rtol=1e-5, atol=1e-5)
    assert fast.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [8, 64])
def test_half_precision_pixels_are_close(dtype: torch.dtype, width: int) -> None:
    plain, z = tokenizer(width), latent()
    exact, close = plain.pixels(z), plain.fast(dtype).pixels(z)
    assert close.dtype == dtype
    # Eight bits of mantissa, through a dozen layers: three per cent of the largest value.
    assert (close.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_codes_and_the_original_stay_as_they_are() -> None:
    plain = tokenizer()
    fast = plain.fast(torch.bfloat16)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert fast.quantizer is plain.quantizer and fast.encoder is plain.encoder
    image = torch.rand(2, 3, 8, 8)
    for ours, theirs in zip(
        plain.encode(image, SCHEDULE), fast.encode(image, SCHEDULE), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_half_a_tokenizer_can_be_fast_too() -> None:
    encoder_only = MultiScaleVQ(
        vocabulary=16, channels=4, width=8, multipliers=(1, 2), blocks=1, scales=3, groups=4,
        decoder=False,
    )  # fmt: skip
    assert encoder_only.fast(torch.bfloat16).quantizer is encoder_only.quantizer


def test_narrow_half_precision_maps_stay_contiguous_on_the_cpu() -> None:
    narrow, wide = tokenizer(8).decoder, tokenizer(64).decoder
    assert layout(narrow, torch.bfloat16) == torch.contiguous_format
    assert layout(narrow, torch.float32) == torch.channels_last
    assert layout(wide, torch.bfloat16) == torch.channels_last


def test_few_images_are_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer()
    canvas = made.blank(5, SCHEDULE).write(torch.arange(5)[:, None])
    sizes: list[int] = []
    pixels = made.pixels
    monkeypatch.setattr(made, "pixels", lambda z: sizes.append(len(z)) or pixels(z))
    at_once = made.decode(canvas)
    assert sizes == [5], "under autograd the graph holds all of them anyway"
    monkeypatch.setitem(autoencoder._PIXELS, "cpu", 2 * 8 * 8)
    with torch.no_grad():
        torch.testing.assert_close(made.decode(canvas), at_once.detach(), rtol=1e-5, atol=1e-5)
    assert sizes == [5, 2, 2, 1]
