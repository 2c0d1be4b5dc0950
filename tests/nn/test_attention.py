"""Attention over groups: what the mask says, in any way it is computed; and what is kept for it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import tiny
from var.condition import Condition
from var.errors import UserError
from var.nn.adaln import Modulated
from var.nn.attention import Attend, CosineScale, attend, unit_length
from var.nn.flex import flex_attend, use_flex
from var.schedule import Schedule

close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)
LADDER = Schedule.scales([1, 2, (2, 3), 4])


def streams(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of two rows and two heads of four channels."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 4, generator=rng) for n in (queries, keys, keys))
    return q, k, v


@pytest.mark.parametrize("way", [attend, flex_attend])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("own", [False, True])
def test_groups_see_what_the_mask_shows(way: Attend, start: int, own: bool) -> None:
    span = LADDER[start:]
    past = span.positions.start
    q, keys, values = streams(len(span), len(span) + past)
    bias = torch.zeros(len(span), len(span) + past)
    mask = span.mask(past, own)
    assert mask is not None and not mask.all()
    weights = (q @ keys.mT + bias.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
    dense = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(way(q, keys, values, span, own=own), dense, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_gradients_are_those_under_the_mask(own: bool) -> None:
    span, leaves = LADDER[:], [t.requires_grad_() for t in streams(len(LADDER[:]), len(LADDER[:]))]
    dense = F.scaled_dot_product_attention(*leaves, span.mask(own=own), scale=1.0)
    ours, theirs = attend(*leaves, span, own=own), dense.transpose(1, 2).flatten(2)
    close(*(torch.autograd.grad(out.square().sum(), leaves) for out in (ours, theirs)))


@pytest.mark.parametrize("name", tiny.LADDERED)
def test_a_model_computes_the_same_by_flex(name: str) -> None:
    family = tiny.LADDERED[name]
    model, plain = family.model(), family.model()
    use_flex(model)
    x, span = family.shown(2, len(family.schedule[:])), family.schedule[:]
    model.requires_grad_(False)  # there are no gradients by it on the CPU
    ours, theirs = (each(x, span, Condition(torch.tensor([0, 1]))) for each in (model, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", tiny.LADDERED)
def test_gradients_by_flex_are_those_by_groups(name: str) -> None:
    family = tiny.LADDERED[name].changed(width=64)
    model, plain = family.model().cuda(), family.model().cuda()
    use_flex(model)
    x, span = family.shown(2, len(family.schedule[:])).cuda(), family.schedule[:]
    for each in (model, plain):
        each(x, span, Condition(torch.tensor([0, 1], device="cuda"))).square().mean().backward()
    for a, b in zip(model.blocks, plain.blocks, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            if q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3)


def test_flex_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match="Raster reads single ones"):
        use_flex(tiny.raster())
    with pytest.raises(UserError, match="attention_drop=0"):
        use_flex(tiny.model(attention_drop=0.1))


def test_lengths_and_modulations_have_the_right_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    x, scale, shift = (torch.randn(2, 3, 5, generator=rng, dtype=torch.double) for _ in range(3))
    leaves = [t.requires_grad_() for t in (x, scale[:, 0].clone(), shift[:, 0].clone())]
    assert torch.autograd.gradcheck(Modulated(5, 1e-6), leaves)
    factor = torch.rand(2, 1, 1, generator=rng, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(unit_length, (x, factor))
    assert torch.autograd.gradcheck(unit_length, (x,))


def test_what_is_kept_by_hand_is_what_autograd_would_compute() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 4, 5, generator=rng).requires_grad_() for _ in range(2))
    scale = CosineScale(3)
    ours, by_hand = scale(q, k), (F.normalize(q, dim=-1) * 4, F.normalize(k, dim=-1))
    close(ours, by_hand)
    close(*(torch.autograd.grad((y[0] * y[1]).sum(), [q, k]) for y in (ours, by_hand)))
    x = torch.randn(2, 7, 8, generator=rng).requires_grad_()
    parts = [torch.randn(2, 8, generator=rng).requires_grad_() for _ in range(2)]
    norm = Modulated(8, 1e-6)
    plain = nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + parts[0][:, None])
    whole = norm(x, *parts), plain + parts[1][:, None]
    close(*(torch.autograd.grad(y.square().sum(), [x, *parts]) for y in whole))
