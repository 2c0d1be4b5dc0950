"""The Mamba-2 mixer: pieces hand a state on, some weights are never rounded, kernels are found."""

import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import make_run
from tests.tiny import close, shaken
from var import store
from var.nn import mamba
from var.nn.mamba import Mamba2
from var.nn.scan import scan

WIDTH = 32
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def mixer(**changes: Any) -> Mamba2:
    made = shaken(Mamba2(WIDTH, **{"state": 8, "head": 16, **changes}), scale=0.3)
    assert isinstance(made, Mamba2)
    return made


def stream(length: int = 9, rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@given(length=st.integers(2, 150), cut=st.floats(0, 1), rows=st.integers(1, 3))
@settings(max_examples=25)
@torch.no_grad()
def test_pieces_that_hand_a_state_on_are_the_whole(length: int, cut: float, rows: int) -> None:
    layer, u = mixer(), stream(length, rows)
    whole, last = layer(u)
    place = 1 + int(cut * (length - 2))
    first, state = layer(u[:, :place])
    rest, after = layer(u[:, place:], state)
    close(torch.cat([first, rest], dim=1), whole)
    close(after, last)
    assert layer(u, keep=False)[1] is None


@torch.no_grad()
def test_no_position_sees_a_later_one() -> None:
    layer, u = mixer(), stream()
    other = u.clone()
    other[:, 5] *= -1
    change = (layer(u)[0] - layer(other)[0]).abs().amax(dim=-1)
    assert (change[:, :5] == 0).all() and (change[:, 5:] > 0).all()


def test_all_weights_are_learned() -> None:
    layer = mixer()
    y, state = layer(stream())
    assert state is not None
    (y.square().sum() + state.ssm.sum()).backward()
    for name, weight in layer.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert (weight.grad != 0).any(), name


@HALF
@torch.no_grad()
def test_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    """To 3 % of the outputs' spread, in the mean; the state stays in float32."""
    layer, u = Mamba2(64), torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0))
    exact, _ = layer(u)
    y, state = layer.to(dtype)(u.to(dtype))
    assert y.dtype == dtype and state is not None and state.ssm.dtype == torch.float32
    assert (y.float() - exact).abs().mean() < 0.03 * exact.std()


@HALF
def test_what_goes_through_exponentials_is_never_rounded(dtype: torch.dtype) -> None:
    layer = Mamba2(WIDTH)
    layer(stream())[0].sum().backward()
    layer.A_log.requires_grad_(False)
    before = {name: layer.get_parameter(name) for name in Mamba2.FLOAT32}
    values = {name: p.detach().clone() for name, p in before.items()}
    whole = nn.Sequential(layer).to(dtype)
    for name, value in values.items():
        now = layer.get_parameter(name)
        assert now is before[name] and torch.equal(now, value) and now.dtype == torch.float32
        assert now.grad is None or now.grad.dtype == torch.float32
        assert now.requires_grad == (name != "A_log")
    assert layer.in_proj.weight.dtype == layer.norm.weight.dtype == dtype
    assert whole.double() and layer.A_log.dtype == torch.float64


def test_a_stored_model_keeps_them_too(tmp_path: Path) -> None:
    run: Any = make_run(family="mvar")
    store.save(tmp_path / "run", run)
    exact = run.model.blocks[0].mamba
    loaded: Any = store.load(tmp_path / "run", dtype=torch.bfloat16).model
    loaded = loaded.blocks[0].mamba
    for name in Mamba2.FLOAT32:
        assert torch.equal(loaded.get_parameter(name), exact.get_parameter(name))
    assert loaded.in_proj.weight.dtype == torch.bfloat16


def test_it_is_built_on_the_meta_device_copied_and_pickled() -> None:
    with torch.device("meta"):
        layer = Mamba2(WIDTH)
    layer = layer.to(torch.bfloat16).to_empty(device="cpu")
    assert layer.A_log.dtype == torch.float32 and layer.out_proj.weight.dtype == torch.bfloat16
    layer = mixer()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(stream())[0], layer(stream())[0])


def test_a_width_that_heads_do_not_divide_is_refused_with_one_that_they_do() -> None:
    with pytest.raises(ValueError, match="2 times the width 48: use a multiple of 32"):
        Mamba2(48)
    with pytest.raises(ValueError, match="1 times the width 48: use a multiple of 64"):
        Mamba2(48, expand=1)
    assert Mamba2(32) and Mamba2(64, expand=1)
    with pytest.raises(ValueError, match="must be 1 or more"):
        Mamba2(32, state=0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Install what is called as mamba_ssm's kernel is; note the lengths that it is called on."""
    calls: list[int] = []

    def fused(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor,
        z: Tensor | None = None, dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None, return_final_states: bool = False,
    ) -> Any:  # fmt: skip
        assert B.shape == C.shape == (*x.shape[:2], 1, B.shape[-1]) and not chunk_size % 64
        calls.append(x.shape[1])
        y, state = scan(x, dt, A, B[:, :, 0], C[:, :, 0], initial_states)
        y = (y + D[:, None] * x).to(x.dtype)
        return (y, state) if return_final_states else y

    name = "mamba_ssm.ops.triton.ssd_combined"
    for place in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", name):
        monkeypatch.setitem(sys.modules, place, ModuleType(place))
    vars(sys.modules[name])["mamba_chunk_scan_combined"] = fused
    monkeypatch.setattr(mamba, "_suits", lambda x: True)
    mamba._kernel.cache_clear()
    yield calls
    mamba._kernel.cache_clear()


@torch.no_grad()
def test_installed_kernels_are_used_with_the_same_results(kernels: list[int]) -> None:
    layer, u = mixer(), stream()
    ours, state = layer(u[:, :4])
    more, last = layer(u[:, 4:], state)
    assert layer(u, keep=False)[1] is None and kernels == [4, 5, 9]
    mamba._kernel.cache_clear()
    del vars(sys.modules["mamba_ssm.ops.triton.ssd_combined"])["mamba_chunk_scan_combined"]
    whole, exact = layer(u)
    assert kernels == [4, 5, 9]
    close(torch.cat([ours, more], dim=1), whole)
    close(last, exact)


def test_kernels_are_for_half_precision_on_cuda() -> None:
    assert not mamba._suits(torch.zeros(1)) and not mamba._suits(torch.zeros(1).bfloat16())


@pytest.mark.gpu
@torch.no_grad()
def test_kernels_on_the_gpu_give_what_the_scan_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, to 2 % of the spread in the mean."""
    pytest.importorskip("mamba_ssm")
    layer = Mamba2(64).cuda().bfloat16()
    u = torch.randn(2, 300, 64, device="cuda", dtype=torch.bfloat16)
    first, state = layer(u[:, :100])
    rest, _ = layer(u[:, 100:], state)
    monkeypatch.setattr(mamba, "_suits", lambda x: False)
    exact, _ = layer(u)
    off = (torch.cat([first, rest], dim=1) - exact).float().abs()
    assert off.mean() < 0.02 * exact.float().std()


@pytest.mark.gpu
@torch.no_grad()
def test_the_gpu_gives_what_the_cpu_gives() -> None:
    layer, u = mixer(), stream(150)
    exact, state = layer(u)
    ours, last = layer.cuda()(u.cuda())
    assert state is not None and last is not None
    close(ours.cpu(), exact, atol=1e-4)
    close(last.ssm.cpu(), state.ssm, atol=1e-4)
