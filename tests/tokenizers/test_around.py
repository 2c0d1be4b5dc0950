"""Tokenizers around tokenizers: what passes through, and what a cache takes the place of."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.data.drawing import Drawing
from var.condition import Condition
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.around import Precompressed, Wrapped
from var.tokenizers.continuous import KL
from var.tokenizers.multiscale import MultiScaleVQ
from var.training.loss import lesson, loss

SCHEDULE = Schedule.scales([1, 2, 4])
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}


def continuous() -> KL:
    made = tiny.shaken(KL(vae=VAE), scale=0.15).eval()
    assert isinstance(made, KL)
    return made.requires_grad_(False)


def discrete() -> MultiScaleVQ:
    made = MultiScaleVQ(
        vocabulary=16, channels=3, width=8, multipliers=(1, 2), blocks=0, scales=3, groups=4
    )
    tiny.shaken(made, scale=0.3)
    return made.eval().requires_grad_(False)


KINDS = pytest.mark.parametrize("make", [continuous, discrete])


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@KINDS
def test_a_wrapped_tokenizer_does_what_is_wrapped(make: Any) -> None:
    inner, image = make(), images()
    outer = Wrapped(inner)
    assert (outer.any_schedule, outer.terms) == (inner.any_schedule, inner.terms)
    code = inner.compress(image, SCHEDULE)
    assert torch.equal(outer.compress(image, SCHEDULE), code)
    for seeds in (None, [1, 2, 3]):
        rngs = [seeds and Rng(seeds) for _ in range(4)]
        tokens = inner.encode(image, SCHEDULE, rngs[0])
        assert equal(outer.encode(image, SCHEDULE, rngs[1]), tokens)
        assert equal(outer.tokens(code, SCHEDULE, rngs[2]), tokens)
    assert torch.equal(outer.embed(tokens[1]), inner.embed(tokens[1]))
    canvas = outer.blank(3, SCHEDULE).write(*tokens)
    assert torch.equal(outer.decode(canvas), inner.decode(inner.blank(3, SCHEDULE).write(*tokens)))


def test_a_wrapped_tokenizer_is_moved_with_its_wrapper() -> None:
    inner = continuous()
    outer = Wrapped(inner)
    assert {id(weight) for weight in outer.parameters()} == {id(w) for w in inner.parameters()}
    outer.to("meta")
    assert inner.scale.is_meta and all(weight.is_meta for weight in inner.parameters())


@KINDS
def test_what_was_compressed_before_becomes_the_tokens_of_its_images(make: Any) -> None:
    inner, image = make(), images()
    kept = Precompressed(inner)
    code = inner.compress(image, SCHEDULE)
    assert kept.compress(code, SCHEDULE) is code
    for seeds in (None, [1, 2, 3]):
        ours = kept.encode(code, SCHEDULE, seeds and Rng(seeds))
        assert equal(ours, inner.encode(image, SCHEDULE, seeds and Rng(seeds)))


def test_nothing_is_compressed_again() -> None:
    inner = Drawing()
    code = inner.compress(images(), SCHEDULE)
    Precompressed(inner).encode(code, SCHEDULE, Rng([1, 2, 3]))  # type: ignore[arg-type]
    assert inner.compressed == 3


@KINDS
def test_a_generator_learns_from_codes_what_it_learns_from_images(make: Any) -> None:
    inner, image = make(), images()
    code = inner.compress(image, SCHEDULE)
    ours, theirs = (
        lesson(tokenizer, SCHEDULE, batch, Rng([1, 2, 3]))
        for tokenizer, batch in ((Precompressed(inner), code), (inner, image))
    )
    assert ours.span == theirs.span
    assert torch.equal(ours.x, theirs.x) and torch.equal(ours.tokens, theirs.tokens)
    condition = Condition(torch.tensor([0, 1, 2]))
    losses = (
        loss(Model(), tokenizer, SCHEDULE, batch, condition, Rng([1, 2, 3]))  # type: ignore[arg-type]
        for tokenizer, batch in ((Precompressed(inner), code), (inner, image))
    )
    assert torch.equal(*losses)


class Model(nn.Module):
    """A backbone, and its own head, that draws after the tokenizer has."""

    @property
    def head(self) -> Any:
        return self

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x.float()

    def loss(self, h: Tensor, tokens: Tensor, span: Any, rng: Rng) -> Tensor:
        each = tokens.sum(dim=-1) if tokens.ndim > 2 else tokens
        return h.sum(dim=-1) + each * rng.uniform(len(span))
