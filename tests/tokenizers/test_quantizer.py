"""The single-scale quantizer: nearest codes, directions, and what it learns by."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.quantizer import Quantizer

SCHEDULE = Schedule.raster((3, 4))
V, C = 12, 5
UNIT = pytest.mark.parametrize("unit", [True, False])


def quantizer(unit: bool = True, **changes: float) -> Quantizer:
    made = Quantizer(vocabulary=V, channels=C, unit=unit, **changes)
    tiny.shaken(made, scale=1.0)
    return made


def latent(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(2, C, 3, 4, generator=torch.Generator().manual_seed(1))


def rows(z: Tensor) -> Tensor:
    """Return the vectors of a latent, row by row."""
    return z.permute(0, 2, 3, 1).reshape(len(z), -1, C)


@UNIT
def test_ids_are_those_of_the_nearest_codes_row_by_row(unit: bool) -> None:
    made = quantizer(unit)
    z, codes = rows(latent()), made.codebook.weight.detach()
    if unit:
        z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
    (ids,) = made.quantise(latent(), SCHEDULE)
    assert torch.equal(ids, torch.cdist(z, codes.expand(2, -1, -1)).argmin(-1))
    torch.testing.assert_close(made.embed(ids), codes[ids])
    assert torch.equal(made(latent(), SCHEDULE).tokens[0], ids)


def test_of_directions_the_length_does_not_matter() -> None:
    made = quantizer()
    (ids,) = made.quantise(latent(), SCHEDULE)
    assert torch.equal(made.quantise(latent(scale=7.0), SCHEDULE)[0], ids)
    assert not torch.equal(quantizer(False).quantise(latent(7.0), SCHEDULE)[0], ids)
    lengths = made.embed(ids).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_new_codes_of_directions_are_as_long_as_they_are_read() -> None:
    lengths = Quantizer(vocabulary=V, channels=C).codebook.weight.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(V))
    assert Quantizer(vocabulary=V, channels=C, unit=False).codebook.weight.abs().max() <= 1 / V


@UNIT
def test_the_latent_is_that_of_the_codes_and_its_gradient_goes_straight_through(
    unit: bool,
) -> None:
    made, z = quantizer(unit, commitment=0.0), latent().requires_grad_()
    quantised = made(z, SCHEDULE)
    canvas = made.blank(2, SCHEDULE).write(*quantised.tokens[0].split(1, dim=1))
    torch.testing.assert_close(quantised.latent, canvas.latent, rtol=0, atol=1e-6)
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad((quantised.latent * weight).sum(), z)
    vectors = F.normalize(z, dim=1) if unit else z
    (expected,) = torch.autograd.grad((vectors * weight).sum(), z)
    torch.testing.assert_close(grad, expected)


@UNIT
def test_codes_learn_from_one_term_and_the_encoder_from_the_other(unit: bool) -> None:
    made, z = quantizer(unit, commitment=0.5), latent().requires_grad_()
    vectors = made.vectors(z)
    losses = made.losses(vectors, made.embed(made.codebook.nearest(vectors)))
    assert set(losses) == {"codebook", "commitment"}
    torch.testing.assert_close(losses["commitment"], 0.5 * losses["codebook"])
    inputs = (z, made.codebook.weight)
    ours, codes = torch.autograd.grad(
        losses["codebook"], inputs, retain_graph=True, allow_unused=True
    )
    assert ours is None and codes.any()
    ours, codes = torch.autograd.grad(losses["commitment"], inputs, allow_unused=True)
    assert codes is None and ours.any()


def test_even_and_sure_choices_lower_the_entropy_term() -> None:
    made = quantizer(entropy=1.0)
    codes = F.normalize(made.codebook.weight.detach(), dim=-1)

    def term(vectors: Tensor) -> float:
        vectors = made.vectors(vectors.T[None, :, :, None])
        return float(made.losses(vectors, vectors)["entropy"].detach())

    even = term(codes)
    assert even == pytest.approx(-torch.tensor(V).log().item(), abs=0.05)
    assert term(codes[:1].expand(V, -1)) == pytest.approx(0, abs=0.05), "always the same"
    between = F.normalize(codes + codes.roll(1, dims=0), dim=-1)
    assert even < term(between), "between two codes"


def test_half_precision_around_it_does_not_change_the_codes() -> None:
    made = quantizer()
    exact = made(latent(), SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        again = made(latent(), SCHEDULE)
    assert torch.equal(again.latent, exact.latent) and torch.equal(again.loss, exact.loss)


def test_bad_grids_and_schedules_are_told() -> None:
    made = quantizer()
    for call in (made, made.quantise):
        with pytest.raises(ValueError, match=r"latent grid is \(3, 4\), the schedule's \(4, 3\)"):
            call(latent(), Schedule.raster((4, 3)))
        with pytest.raises(UserError, match=r"schedule={raster: \[3, 4\]}"):
            call(latent(), Schedule.scales([1, (3, 4)]))


def test_directions_and_points_are_different_rules_of_the_same_weights() -> None:
    assert quantizer(True).rules != quantizer(False).rules
