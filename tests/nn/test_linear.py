"""Linear maps with packed weights: the same product, taken only where it may be."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from var.nn import linear
from var.nn.linear import Linear, Pack, choose_routes, packed, packed_linear


def can_pack() -> bool:
    try:
        packed_linear(torch.ones(1, 1), packed(torch.ones(1, 1)))
    except (RuntimeError, AttributeError):
        return False
    return True


pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN")


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    bias=st.booleans(),
    gelu=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_packed_weights_are_the_same_map(
    shape: list[int], inputs: int, outputs: int, bias: bool, gelu: bool
) -> None:
    layer = Linear(inputs, outputs, bias=bias)
    x = torch.randn(*shape, inputs)
    with torch.no_grad():
        plain = layer.product(x, layer.bias, gelu=gelu)
        layer.pack = Pack()
        ours = layer.product(x, layer.bias, gelu=gelu)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Number type of each product with packed weights."""
    types: list[torch.dtype] = []

    def noting(x: Tensor, *rest: object) -> Tensor:
        types.append(x.dtype)
        return packed_linear(x, *rest)

    monkeypatch.setattr(linear, "packed_linear", noting)
    return types


def test_packed_weights_are_left_alone_under_autograd_and_autocast(
    taken: list[torch.dtype],
) -> None:
    layer, x = Linear(4, 6), torch.randn(5, 4)
    layer.pack = Pack()
    layer(x).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not taken and layer.weight.grad is not None
    with torch.no_grad():
        layer(x)
    assert taken == [torch.float32]


def test_a_few_rows_of_float32_take_the_weights_as_they_lie(taken: list[torch.dtype]) -> None:
    layer = Linear(4, 6)
    layer.pack = Pack()
    with torch.no_grad():
        layer(torch.randn(3, 4))
        layer(torch.randn(2, 1, 4))
        assert not taken
        layer(torch.randn(2, 2, 4))
    assert taken == [torch.float32]


def test_weights_that_change_are_packed_again() -> None:
    layer, x = Linear(4, 6), torch.randn(5, 4)
    layer.pack = Pack()
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(
            layer.product(x, None), 2 * (before - layer.bias), rtol=1e-5, atol=1e-5
        )
        layer.load_state_dict({"weight": torch.zeros(6, 4), "bias": torch.ones(6)}, assign=True)
        assert torch.equal(layer(x), torch.ones(5, 6))


def test_a_copy_packs_its_own_weights() -> None:
    layer, x = Linear(4, 6), torch.randn(5, 4)
    layer.pack = Pack()
    with torch.no_grad():
        before = layer(x)
        copy = deepcopy(layer)
        layer.weight.zero_()
        torch.testing.assert_close(copy(x), before)


def test_a_slice_of_something_larger_is_mapped_too() -> None:
    layer, x = Linear(4, 6), torch.randn(2, 5, 4)[:, 2:]
    with torch.no_grad():
        plain = layer(x)
        layer.pack = Pack()
        torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-6)


def test_measuring_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    for measure in (linear.packed_is_faster, linear.bfloat16_is_faster):
        measure.__wrapped__(*([torch.float32] if measure is linear.packed_is_faster else []))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("faster", [True, False])
def test_the_machine_decides_on_the_route(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    monkeypatch.setattr(linear, "packed_is_faster", lambda dtype: faster)
    model = nn.Sequential(Linear(2, 3), nn.ReLU(), Linear(3, 1))
    choose_routes(model)
    assert [model[i].pack is not None for i in (0, 2)] == [faster, faster]


def test_another_choice_leaves_nothing_of_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(2, 3)
    monkeypatch.setattr(linear, "packed_is_faster", lambda dtype: True)
    choose_routes(layer, compiled=True)
    assert "product" in vars(layer)
    monkeypatch.setattr(linear, "packed_is_faster", lambda dtype: False)
    choose_routes(layer, compiled=True)
    assert "product" not in vars(layer) and layer.pack is None


def test_routes_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def lasting(seconds: float, name: str) -> Tensor:
        now[0] += seconds
        order.append(name)
        return torch.zeros(())

    monkeypatch.setattr(linear, "perf_counter", lambda: now[0])
    gain = linear._gain(lambda: lasting(3.0, "old"), lambda: lasting(2.0, "new"), repeats=2)
    assert gain == pytest.approx(1.5)
    assert order == ["old", "new"] * 3
