"""The continuous tokenizer: drawing, standardising, decoding, and the way to disk and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from tests import tiny
from var import recipe, store
from var.errors import UserError
from var.random import Rng
from var.recipe import Recipe
from var.schedule import Schedule
from var.store import Run
from var.tokenizers import autoencoder
from var.tokenizers.continuous import KL, Posterior
from var.untrained import untrained

SCHEDULE = Schedule.scales([1, 2, 4])
CHANNELS, FACTOR = 3, 2


def keywords(**changes: Any) -> dict[str, Any]:
    return {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "latent_channels": CHANNELS,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
        **changes,
    }


def make(encoder: bool = True, decoder: bool = True, **changes: Any) -> KL:
    made = KL(vae=keywords(**changes), encoder=encoder, decoder=decoder)
    tiny.shaken(made, scale=0.15)
    return made.eval()


@pytest.fixture(scope="module")
def tokenizer() -> KL:
    return make().requires_grad_(False)


def images(batch: int = 3, h: int = 8, w: int = 8) -> Tensor:
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(0))


def close(ours: Tensor, theirs: Tensor) -> None:
    # Sums over a batch of another size may be taken in another order.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ladder", [[1, 2, 4], [4], [1, (2, 3), (4, 6)]])
def test_images_become_scales_and_images_again(tokenizer: KL, ladder: list) -> None:
    schedule = Schedule.scales(ladder)
    h, w = (FACTOR * side for side in schedule.grids[-1])
    tokens = tokenizer.encode(images(2, h, w), schedule)
    assert [group.shape for group in tokens] == [(2, size, CHANNELS) for size in schedule.sizes]
    canvas = tokenizer.blank(2, schedule).write(*tokens)
    made = tokenizer.decode(canvas)
    assert made.shape == (2, 3, h, w) and made.dtype == torch.float32
    assert 0 <= made.min() < made.max() <= 1
    again = tokenizer.encode(made, schedule)
    assert [group.shape for group in again] == [group.shape for group in tokens]


def test_every_partial_canvas_has_an_image(tokenizer: KL) -> None:
    canvas = tokenizer.blank(3, SCHEDULE)
    for group in tokenizer.encode(images(), SCHEDULE):
        before, canvas = tokenizer.decode(canvas), canvas.write(group)
        assert (tokenizer.decode(canvas) - before).abs().max() > 1e-3


def test_an_image_is_drawn_alone_as_among_others(tokenizer: KL) -> None:
    many = tokenizer.encode(images(), SCHEDULE, Rng([5, 6, 7]))
    alone = tokenizer.encode(images()[1:2], SCHEDULE, Rng([6]))
    other = tokenizer.encode(images()[1:2], SCHEDULE, Rng([5]))
    for ours, theirs, another in zip(alone, many, other, strict=True):
        close(ours, theirs[1:2])
        assert not torch.allclose(ours, another, atol=1e-3)


def test_without_streams_the_mean_is_taken(tokenizer: KL) -> None:
    mean, log_variance = tokenizer.compress(images(), SCHEDULE).chunk(2, dim=1)
    last = tokenizer.encode(images(), SCHEDULE)[-1].mT.view_as(mean)
    assert torch.equal(last, (mean - 0.1) * 0.5)
    assert torch.equal(tokenizer.encode(images(), SCHEDULE)[-1].mT.view_as(mean), last)
    noise = Rng([1, 2, 3]).normal(CHANNELS, 4, 4)
    drawn = tokenizer.encode(images(), SCHEDULE, Rng([1, 2, 3]))[-1].mT.view_as(mean)
    close(drawn, (mean + (log_variance / 2).exp() * noise - 0.1) * 0.5)


def test_what_is_worth_keeping_becomes_the_tokens_of_the_image(tokenizer: KL) -> None:
    moments = tokenizer.compress(images(), SCHEDULE)
    assert moments.shape == (3, 2 * CHANNELS, 4, 4)
    for seeds in (None, [1, 2, 3]):
        kept = tokenizer.tokens(moments, SCHEDULE, seeds and Rng(seeds))
        whole = tokenizer.encode(images(), SCHEDULE, seeds and Rng(seeds))
        assert all(torch.equal(a, b) for a, b in zip(kept, whole, strict=True))


def test_images_that_do_not_fit_are_refused(tokenizer: KL) -> None:
    with pytest.raises(ValueError, match=r"multiples of 2, got \(8, 7\)"):
        tokenizer.encode(images(1, 8, 7), SCHEDULE)
    with pytest.raises(ValueError, match=r"latent grid is \(3, 4\), the schedule ends on \(4, 4\)"):
        tokenizer.encode(images(1, 6, 8), SCHEDULE)


def test_noise_has_bounds() -> None:
    posterior = Posterior.of(torch.tensor([0.0, 0.0, -99.0, 99.0]).view(1, 4, 1, 1))
    assert posterior.log_variance.flatten().tolist() == [-30, 20]
    assert posterior.deviation.flatten().tolist() == pytest.approx([3.059e-7, 22026.47], rel=1e-3)


def test_the_divergence_is_that_of_diffusers() -> None:
    moments = 3 * torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(1))
    ours, theirs = Posterior.of(moments).divergence(), DiagonalGaussianDistribution(moments).kl()
    assert ours.shape == (4,)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert Posterior.of(torch.zeros(1, 6, 3, 5)).divergence().item() == 0


def test_latents_are_standardised_by_what_the_keywords_say() -> None:
    plain = make(shift_factor=None)
    assert plain.shift.flatten().tolist() == [0] * 3 and plain.scale.flatten().tolist() == [0.5] * 3
    each = make(latents_mean=[1, 2, 3], latents_std=(1.0, 2.0, 4.0))
    assert each.shift.flatten().tolist() == [1, 2, 3]
    assert each.scale.flatten().tolist() == [0.5, 0.25, 0.125]
    latent = torch.randn(2, CHANNELS, 4, 4)
    canvas = each.blank(2, SCHEDULE).amended(each.standardised(latent))
    close(each.decode(canvas), autoencoder.zero_one(each.vae.decode(latent).sample))
    each.scale.fill_(7)
    each.reset_buffers()
    assert each.scale.flatten().tolist() == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [1, 2]}, "KL cannot be built of these: .* size"),
        ({"in_channels": 4}, "images have 3 channels, the autoencoder reads 4 and makes 3"),
        ({"norm_num_groups": 5}, "divisible by num_groups"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_keywords_that_make_no_tokenizer_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.build({"_target_": "var.tokenizers.continuous.KL", "vae": keywords(**changes)}, "it")


def test_half_a_tokenizer_does_its_half(tokenizer: KL) -> None:
    eye, hand = make(decoder=False), make(encoder=False)
    state = tokenizer.state_dict()
    for half in (eye, hand):
        half.load_state_dict({key: state[key] for key in half.state_dict()})
    assert {*eye.state_dict(), *hand.state_dict()} == set(state)
    tokens = tokenizer.encode(images(), SCHEDULE)
    ours = eye.encode(images(), SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(ours, tokens, strict=True))
    canvas = hand.blank(3, SCHEDULE).write(*tokens)
    for made in (hand.decode(canvas), hand.fast(torch.float32).decode(canvas)):
        close(made, tokenizer.decode(canvas))
    assert eye.fast(torch.bfloat16).vae.encoder is eye.vae.encoder


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize(
    # Eight bits of mantissa, through two dozen layers: three per cent of the largest value.
    ("dtype", "share"),
    [(torch.float32, 1e-5), (torch.bfloat16, 0.03)],
)
def test_a_fast_decoder_makes_nearly_the_same_pixels(
    dtype: torch.dtype, share: float, convolutions: bool
) -> None:
    plain = make(use_quant_conv=convolutions, use_post_quant_conv=convolutions)
    fast, latent = plain.fast(dtype), torch.randn(3, CHANNELS, 4, 4)
    exact, near = plain.pixels(latent), fast.pixels(latent)
    assert near.dtype == dtype
    assert (near.float() - exact).abs().max() < share * exact.abs().max()
    assert fast.vae.encoder is plain.vae.encoder and fast.vae.quant_conv is plain.vae.quant_conv
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    ours, theirs = (made.encode(images(), SCHEDULE) for made in (fast, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    canvas = fast.blank(3, SCHEDULE).write(*theirs)
    assert fast.decode(canvas).dtype == torch.float32


def test_few_images_are_decoded_at_a_time(tokenizer: KL, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = tokenizer.blank(5, SCHEDULE).write(*tokenizer.encode(images(5), SCHEDULE))
    sizes: list[int] = []
    pixels = tokenizer.pixels
    monkeypatch.setattr(tokenizer, "pixels", lambda z: sizes.append(len(z)) or pixels(z))
    monkeypatch.setitem(autoencoder._PIXELS, "cpu", 2 * 8 * 8)
    at_once = tokenizer.decode(canvas)
    assert sizes == [5], "under autograd the graph holds all of them anyway"
    with torch.no_grad():
        close(tokenizer.decode(canvas), at_once)
    assert sizes == [5, 2, 2, 1]


def test_a_stored_tokenizer_comes_back_to_the_last_bit(tokenizer: KL, tmp_path: Path) -> None:
    spec = {"_target_": "var.tokenizers.continuous.KL", "vae": keywords(latents_std=[1, 2, 3])}
    moved = make(latents_std=[1, 2, 3]).requires_grad_(False)
    moved.shift += 0.25  # as training does
    run = Run(Recipe(tokenizer=spec, schedule=SCHEDULE), moved)
    store.save(tmp_path, run)
    again = store.load(tmp_path)
    assert again.recipe == run.recipe
    for rng in (None, Rng([1, 2, 3])):
        tokens = again.tokenizer.encode(images(), SCHEDULE, rng)
        ours = moved.encode(images(), SCHEDULE, rng and Rng([1, 2, 3]))
        assert all(torch.equal(a, b) for a, b in zip(tokens, ours, strict=True))
    canvas = again.tokenizer.blank(3, SCHEDULE).write(*tokens)
    assert torch.equal(again.tokenizer.decode(canvas), moved.decode(canvas))


def test_training_reaches_every_weight() -> None:
    made = make().train()
    reconstruction, posterior = made(images(), Rng([1, 2, 3]))
    assert reconstruction.shape == (3, 3, 8, 8)
    (reconstruction.square().mean() + posterior.divergence().mean()).backward()
    # The bias of keys moves all logits of a softmax alike: its gradient is zero up to rounding.
    grads = {name: p.grad for name, p in made.named_parameters() if "to_k.bias" not in name}
    assert not [name for name, g in grads.items() if g is None or not g.abs().max() > 0]
    assert all(g.isfinite().all() for g in grads.values() if g is not None)
    again, _ = made(images(), Rng([1, 2, 3]))
    other, _ = made(images(), Rng([4, 2, 3]))
    assert torch.equal(again, reconstruction)
    assert not torch.equal(other[0], again[0]) and torch.equal(other[1:], again[1:])


def test_random_weights_are_standardised_as_trained_ones() -> None:
    made = untrained({"_target_": "var.tokenizers.continuous.KL", "vae": keywords()}, "it")
    assert made.shift.flatten().tolist() == pytest.approx([0.1] * CHANNELS)
    assert made.scale.flatten().tolist() == [0.5] * CHANNELS


def test_a_generator_is_told_the_channels(tokenizer: KL) -> None:
    assert tokenizer.terms == {"channels": CHANNELS} and tokenizer.any_schedule
    vectors = torch.randn(2, 5, CHANNELS)
    assert tokenizer.embed(vectors) is vectors
