"""Rotary positions of grids, and attention group by group."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from var.nn.attention import attend
from var.nn.rotary import (
    CrossAttention,
    RotaryAttention,
    attend_back,
    raster_turn,
    rotate,
    scaled,
    turn,
)
from var.schedule import Schedule, Span

CPU = torch.device("cpu")
sides = st.integers(1, 4)
ladders = st.lists(st.tuples(sides, sides), min_size=1, max_size=4)


def grid(h: int, w: int) -> Span:
    return Schedule.scales([(h, w)])[:]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(span: Span, channels: int, extent: float) -> Tensor:
    """Return the angles (L, channels / 2), -pi..pi."""
    cos, sin = turn(span, channels, extent, CPU)
    return torch.atan2(sin, cos)


@given(ladder=ladders, start=st.integers(0, 3), past=st.integers(0, 6), own=st.booleans())
def test_groups_see_what_the_mask_lets_them_see(
    ladder: list, start: int, past: int, own: bool
) -> None:
    span = Schedule.scales(ladder)[min(start, len(ladder) - 1) :]
    q = random(2, 3, len(span), 4, seed=1)
    keys, values = random(2, 2, 3, past + len(span), 4, seed=2).unbind()
    dense = F.scaled_dot_product_attention(
        q, keys, values, attn_mask=span.mask(past, own), scale=1.0
    )
    ours = attend(q, keys, values, span, own=own)
    assert ours.shape == (2, len(span), 12)
    torch.testing.assert_close(ours, dense.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-5)


def test_weights_of_attention_are_dropped_at_random() -> None:
    span = Schedule.scales([1, 2])[:]
    q, k, v = random(3, 2, 1, 5, 4).unbind()
    torch.manual_seed(0)
    first, second = (attend(q, k, v, span, drop=0.5) for _ in range(2))
    assert not torch.allclose(first, second)


@given(ladder=ladders, channels=st.sampled_from([4, 8, 20]), extent=st.floats(0.5, 32))
def test_turning_keeps_the_length_of_every_pair(ladder: list, channels: int, extent: float) -> None:
    span = Schedule.scales(ladder)[:]
    x = random(2, 3, len(span), channels)
    y = rotate(x, turn(span, channels, extent, CPU))
    assert y.shape == x.shape and y.dtype == torch.float32
    pairs = [each.unflatten(-1, (-1, 2)).norm(dim=-1) for each in (x, y)]
    torch.testing.assert_close(*pairs, rtol=1e-5, atol=1e-6)


@given(h=sides, w=sides)
def test_products_depend_on_the_difference_of_positions_only(h: int, w: int) -> None:
    q, k = (random(12, seed=seed).expand(h * w, 12) for seed in (1, 2))
    turned = turn(grid(h, w), 12, 16.0, CPU)
    products = rotate(q, turned) @ rotate(k, turned).T
    found: dict[tuple[int, int], list[float]] = {}
    for i in range(h * w):
        for j in range(h * w):
            difference = (i // w - j // w, i % w - j % w)
            found.setdefault(difference, []).append(float(products[i, j]))
    for same in found.values():
        assert max(same) - min(same) < 1e-4
    means = sorted(sum(same) / len(same) for same in found.values())
    assert all(b - a > 1e-4 for a, b in zip(means[:-1], means[1:], strict=True))


def test_a_single_cell_is_not_turned_and_a_row_by_its_columns_only() -> None:
    x = random(1, 12)
    assert torch.equal(rotate(x, turn(grid(1, 1), 12, 16.0, CPU)), x)
    row = angles(grid(1, 3), 12, 1.0)
    assert not row[:, :3].any() and row[1:, 3:].all() and not row[0].any()
    column = angles(grid(3, 1), 12, 1.0)
    assert torch.equal(column[:, :3], row[:, 3:]) and not column[:, 3:].any()


@pytest.mark.parametrize(("extent", "h", "w"), [(16.0, 4, 4), (2.0, 3, 5), (1.0, 7, 2)])
def test_grids_are_stretched_over_the_extent(extent: float, h: int, w: int) -> None:
    channels = 8
    cos, sin = turn(grid(h, w), channels, extent, CPU)
    for cell in range(h * w):
        places = [extent * (cell // w) / h, extent * (cell % w) / w]
        expected = [p * 10000 ** (-2 * j / 4) for p in places for j in range(2)]
        assert cos[cell].tolist() == pytest.approx([math.cos(a) for a in expected], abs=1e-5)
        assert sin[cell].tolist() == pytest.approx([math.sin(a) for a in expected], abs=1e-5)


def test_a_cell_has_one_place_whatever_the_grid() -> None:
    coarse, fine = (angles(grid(s, s), 16, 16.0).view(s, s, -1) for s in (4, 8))
    torch.testing.assert_close(fine[::2, ::2], coarse, rtol=0, atol=1e-5)


@given(ladder=ladders)
def test_every_grid_of_a_span_is_turned_on_its_own(ladder: list) -> None:
    schedule = Schedule.scales(ladder)
    whole = torch.stack(turn(schedule[:], 8, 16.0, CPU))
    parts = [turn(schedule[k : k + 1], 8, 16.0, CPU) for k in range(len(ladder))]
    alone = [turn(grid(h, w), 8, 16.0, CPU) for h, w in ladder]
    for each in (parts, alone):
        together = torch.stack([torch.cat(side) for side in zip(*each, strict=True)])
        assert torch.equal(together, whole)


@pytest.mark.parametrize("channels", [2, 6, 9])
def test_heads_that_cannot_be_halved_twice_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"heads of {channels} channels .* a multiple of 4"):
        turn(grid(2, 2), channels, 16.0, CPU)


def test_what_was_first_needed_in_inference_serves_training_too() -> None:
    extent = 16.123  # of no other test: made here
    with torch.inference_mode():
        first = turn(grid(2, 3), 8, extent, CPU)
    again = turn(grid(2, 3), 8, extent, CPU)
    assert again is first, "made once"
    x = random(2, 6, 8).requires_grad_()
    rotate(x, again).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())  # lengths stay


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_splits_what_it_mixes(bias: bool) -> None:
    torch.manual_seed(0)
    attention = RotaryAttention(24, 3, bias=bias)
    assert (attention.qkv.bias is not None) == bias and attention.proj.bias is not None
    span = Schedule.scales([2, (1, 3)])[:]
    x, turned = random(2, 7, 24), turn(span, 8, 16.0, CPU)
    q, k, v = attention.split(x, turned)
    three = attention.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(q, rotate(three[0], turned) / 8**0.5)
    torch.testing.assert_close(k, rotate(three[1], turned))
    assert torch.equal(v, three[2])
    out = attend(q, k, v, span)
    assert torch.equal(attention.mix(out), attention.proj(out))


def test_attention_to_another_stream_asks_in_one_width_and_meets_in_another() -> None:
    torch.manual_seed(0)
    attention, turned = CrossAttention(16, 10, 2), turn(grid(2, 2), 8, 16.0, CPU)
    x, z = random(2, 4, 16), random(2, 4, 10, seed=1)
    k, v = attention.meet(z, turned)
    two = attention.kv(z).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(k, rotate(two[0], turned))
    assert torch.equal(v, two[1])
    q = attention.q(x).unflatten(-1, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(attention.ask(x, turned), scaled(rotate(q, turned)))


def test_half_precision_is_turned_in_float32_and_returned_as_it_came() -> None:
    attention = RotaryAttention(16, 2).bfloat16()
    turned = turn(grid(4, 4), 8, 16.0, CPU)
    assert rotate(random(16, 8).bfloat16(), turned).dtype == torch.float32
    parts = attention.split(random(1, 16, 16).bfloat16(), turned)
    cross = CrossAttention(16, 16, 2).bfloat16()
    ask = cross.ask(random(1, 16, 16).bfloat16(), turned)
    meet = cross.meet(random(1, 16, 16).bfloat16(), turned)
    assert {part.dtype for part in (*parts, ask, *meet)} == {torch.bfloat16}


def test_dropout_is_for_training_and_heads_divide_the_width() -> None:
    attention = RotaryAttention(16, 2, drop=0.5, attention_drop=0.3)
    assert attention.dropped == 0.3 and attention.eval().dropped == 0
    with pytest.raises(ValueError, match="3 heads do not divide the width 16"):
        RotaryAttention(16, 3)


@given(h=sides, w=sides, base=st.sampled_from([10000.0, 100.0]))
def test_a_raster_turns_by_the_cell_of_the_token_that_is_read(h: int, w: int, base: float) -> None:
    channels = 12
    cos, sin = raster_turn((h, w), channels, base, CPU)
    assert cos.shape == sin.shape == (h * w, channels // 2)
    assert not cos[0].any() and not sin[0].any(), "the condition is no cell"
    for position in range(1, h * w):
        places = divmod(position - 1, w)
        angles = [place * base ** (-2 * j / 6) for place in places for j in range(3)]
        assert cos[position].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-6)
        assert sin[position].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)


def test_angles_of_a_large_raster_are_exact_to_float32() -> None:
    cos, sin = raster_turn((64, 64), 64, 10000.0, CPU)
    frequency = 10000.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    cell = torch.arange(64 * 64 - 1)
    angle = torch.cat([(cell // 64)[:, None] * frequency, (cell % 64)[:, None] * frequency], dim=1)
    # The largest angle is 63: float32 knows it to 4e-6.
    torch.testing.assert_close(cos[1:].double(), angle.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[1:].double(), angle.sin(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 6), (1, 6), (1, 1)])
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_positions_see_themselves_and_what_was_before(queries: int, keys: int, heads: int) -> None:
    q = random(2, 4, queries, 8)
    k, v = random(2, 2, heads, keys, 8, seed=1).unbind()
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    repeated = (t.repeat_interleave(4 // heads, dim=1) for t in (k, v))
    exact = F.scaled_dot_product_attention(q, *repeated, attn_mask=seen, scale=1.0)
    exact = exact.transpose(1, 2).flatten(2)
    bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    for mask in (None, seen, bias):
        torch.testing.assert_close(attend_back(q, k, v, mask), exact, rtol=1e-5, atol=1e-5)


def test_shared_heads_of_keys_are_those_of_several_queries() -> None:
    torch.manual_seed(0)
    few, many = RotaryAttention(32, 4, kv_heads=2, bias=False), RotaryAttention(32, 4, bias=False)
    q, k, v = few.qkv.weight.split([32, 16, 16])
    twice = [t.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1) for t in (k, v)]
    many.load_state_dict({**few.state_dict(), "qkv.weight": torch.cat([q, *twice])})
    x, turned = random(2, 6, 32), raster_turn((2, 3), 8, 10000.0, CPU)
    ours, theirs = (each.mix(attend_back(*each.split(x, turned), None)) for each in (few, many))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert few.split(x, turned)[1].shape == (2, 2, 6, 8)
    assert torch.equal(few.values(x), few.split(x, turned)[2])
    assert torch.equal(many.values(x), many.split(x, turned)[2])


@pytest.mark.parametrize("kv_heads", [0, 3, 8])
def test_heads_of_keys_must_divide_those_of_queries(kv_heads: int) -> None:
    with pytest.raises(ValueError, match=f"{kv_heads} heads of keys cannot be shared evenly by 4"):
        RotaryAttention(32, 4, kv_heads=kv_heads)
