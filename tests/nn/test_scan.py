"""The scan by chunks: the same as step after step, whatever is fed, and in whatever pieces."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from var.nn.scan import scan

NAMES = ("x", "step", "rate", "b", "c", "state")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]


def inputs(
    length: int,
    *,
    rows: int = 2,
    heads: int = 3,
    seed: int = 0,
    state: bool = True,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Return what `scan` is given: P = 4, N = 5, and rates -16..-0.001, one at each end.

    Args:
        length: L.
        rows: R.
        heads: H.
        seed: of all numbers.
        state: whether there is one before.
        spread: of what the softplus of steps is taken of; their range is many orders of magnitude.
        dtype: of everything.
    """
    rng = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=rng, dtype=dtype)
    step = F.softplus(spread * normal(rows, length, heads) - 1)
    rate = -torch.logspace(1.2, -3, heads, dtype=dtype).clamp(max=16)
    before = normal(rows, heads, 4, 5) if state else None
    x, b, c = (normal(rows, length, *shape) for shape in ((heads, 4), (5,), (5,)))
    return x, step, rate, b, c, before


def sequential(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return outputs and the last state, of one position after the other, in float64.

    The rate may be that of each step, (R, L, H).
    """
    x, step, rate, b, c = (each.double() for each in (x, step, rate, b, c))
    rows, _, heads, channels = x.shape
    now = x.new_zeros(rows, heads, channels, b.shape[-1]) if state is None else state.double()
    decay = (step * rate).exp()[..., None, None]
    outputs = []
    for t in range(x.shape[1]):
        written = torch.einsum("rh,rhp,rn->rhpn", step[:, t], x[:, t], b[:, t])
        now = decay[:, t] * now + written
        outputs.append(torch.einsum("rhpn,rn->rhp", now, c[:, t]))
    return torch.stack(outputs, dim=1), now


def close(ours: Iterable[Tensor], exact: Iterable[Tensor], tolerance: float = 1e-5) -> None:
    """Check two series of tensors for equality, relative to the largest number of each."""
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.shape == theirs.shape and mine.isfinite().all()
        worst = float((mine.double() - theirs.double()).abs().max())
        # What is fed is of the order of 1: less than this is as good as nothing.
        assert worst <= tolerance * max(float(theirs.abs().max()), 1e-20)


def gradients(of: Callable[..., tuple[Tensor, Tensor]], fed: Inputs) -> list[Tensor]:
    """Return those of a random sum of all outputs, by everything that is fed."""
    leaves = [None if each is None else each.detach().requires_grad_() for each in fed]
    rng = torch.Generator().manual_seed(0)
    loss = sum(
        (each.double() * torch.randn(each.shape, generator=rng)).sum() for each in of(*leaves)
    )
    return list(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None]))


drawn = given(
    length=st.integers(1, 70),
    chunk=st.integers(1, 80),
    rows=st.integers(1, 3),
    heads=st.integers(1, 4),
    state=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    seed=st.integers(0, 99),
)


@drawn
@settings(max_examples=100)
def test_chunks_give_what_steps_give(chunk: int, length: int, **kind: Any) -> None:
    fed = inputs(length, **kind)
    ours = scan(*fed, chunk=chunk)
    assert all(each.dtype == torch.float32 for each in ours)
    close(ours, sequential(*fed))


@drawn
@settings(max_examples=30)
def test_chunks_give_the_gradients_of_steps(chunk: int, length: int, **kind: Any) -> None:
    fed = inputs(length, **kind)
    x, step, rate, *others = fed
    exact = gradients(sequential, (x, step, rate.expand(step.shape), *others))
    ours = gradients(partial(scan, chunk=chunk), fed)
    assert all(each.dtype == torch.float32 for each in ours)
    # The rate's is a sum over everything, which may cancel: it is as exact as others are large.
    rates = exact.pop(2).double()
    miss = (ours.pop(2) - rates.sum(dim=(0, 1))).abs().max()
    others_size = max(float(each.abs().max()) for each in exact)
    assert miss <= 1e-5 * max(float(rates.abs().sum(dim=(0, 1)).max()), 1e-2 * others_size)
    close(ours, exact)


def test_gradients_are_those_of_finite_differences() -> None:
    fed = inputs(3, rows=1, heads=2, dtype=torch.float64)
    leaves = [each.requires_grad_() for each in fed]
    assert torch.autograd.gradcheck(partial(scan, chunk=2), leaves)


def test_float64_stays_float64() -> None:
    fed = inputs(30, dtype=torch.float64)
    ours = scan(*fed, chunk=7)
    assert all(each.dtype == torch.float64 for each in ours)
    close(ours, sequential(*fed), 1e-13)


@given(length=st.integers(2, 70), data=st.data())
def test_a_sequence_can_be_taken_in_two_and_its_state_handed_on(
    length: int, data: st.DataObject
) -> None:
    cut, chunk = data.draw(st.integers(1, length - 1)), data.draw(st.integers(1, 80))
    x, step, rate, b, c, state = inputs(length, state=data.draw(st.booleans()))
    first, between = scan(x[:, :cut], step[:, :cut], rate, b[:, :cut], c[:, :cut], state)
    second, last = scan(x[:, cut:], step[:, cut:], rate, b[:, cut:], c[:, cut:], between)
    whole = scan(x, step, rate, b, c, state, chunk=chunk)
    close((torch.cat([first, second], dim=1), last), whole)


@given(length=st.integers(2, 40), chunk=st.integers(1, 50), data=st.data())
def test_no_position_sees_a_later_one(length: int, chunk: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, length - 1))
    fed = [each.requires_grad_() for each in inputs(length)]
    y, _ = scan(*fed, chunk=chunk)
    y[:, :cut].sum().backward()
    for name, each in zip(NAMES, fed, strict=True):
        if name not in ("rate", "state"):
            # To the last bit: not even a later position's rounding may be seen.
            assert not each.grad[:, cut:].any() and each.grad[:, :cut].any(), name


@given(length=st.integers(1, 40), chunk=st.integers(1, 50), state=st.booleans())
def test_a_state_that_nobody_asked_for_is_none(length: int, chunk: int, state: bool) -> None:
    fed = inputs(length, state=state)
    ours, nothing = scan(*fed, keep=False, chunk=chunk)
    assert nothing is None
    close([ours], sequential(*fed)[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    low = [each.to(dtype) for each in inputs(40, spread=1.0)]
    ours = scan(*low, chunk=16)
    assert all(each.dtype == torch.float32 for each in ours)
    for mine, theirs in zip(ours, scan(*(each.float() for each in low), chunk=16), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    fed = inputs(40)
    plain = scan(*fed, chunk=16)
    with torch.autocast("cpu", dtype):
        ours = scan(*fed, chunk=16)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_what_fades_at_once_is_finite_and_so_are_its_gradients(size: float, chunk: int) -> None:
    x, step, rate, b, c, state = inputs(50)
    fed = (x, step.clamp(min=0.1) * size, rate.clamp(max=-1), b, c, state)
    close(scan(*fed, chunk=chunk), sequential(*fed))
    assert all(each.isfinite().all() for each in gradients(partial(scan, chunk=chunk), fed))


@pytest.mark.parametrize("chunk", [8, 64, 512])
def test_long_sums_of_what_fades_are_not_rounded(chunk: int) -> None:
    # In between, little fades; the sum of all that fades is a million times as much.
    x, step, rate, b, c, state = inputs(300, rows=1, spread=0.1)
    step[:, ::50] = 1e4
    close(scan(x, step, rate, b, c, state, chunk=chunk), sequential(x, step, rate, b, c, state))


def test_steps_of_nothing_change_nothing() -> None:
    x, step, rate, b, c, state = inputs(20)
    y, last = scan(x, torch.zeros_like(step), rate, b, c, state, chunk=8)
    close([last], [state], 1e-6)
    close([y], [torch.einsum("rhpn,rln->rlhp", state, c)])


def test_all_lengths_of_a_chunk_need_one_compilation_and_no_break() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(scan, dynamic=True, fullgraph=True, backend=counter)
    for length in range(6, 41):  # not 5: sizes that are alike at first are taken to be so always
        fed = inputs(length, state=False)
        close(compiled(*fed), scan(*fed), 1e-6)
    assert counter.frame_count == 1


def test_compiled_gradients_of_several_chunks_are_the_same() -> None:
    torch.compiler.reset()
    chunked, fed = partial(scan, chunk=16), inputs(37)
    compiled = torch.compile(chunked, dynamic=False, fullgraph=True, backend="aot_eager")
    close(gradients(compiled, fed), gradients(chunked, fed), 1e-6)
