"""Root-mean-square norms, gated perceptrons and classes: the formulas, in float64."""

import math

import pytest
import torch
from torch import Tensor

from var.nn.classes import Classes
from var.nn.gated import GatedMlp, gated_hidden
from var.nn.rms import RMSNorm, modulated, rms


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def close(ours: Tensor, exact: Tensor, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1.0, 1e3])
def test_vectors_are_divided_by_the_root_of_their_mean_square(size: float) -> None:
    x = (size * random(2, 3, 7)).float()
    close(rms(x), by_definition(x))
    assert not rms(torch.zeros(2, 7)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_are_taken_in_float32(dtype: torch.dtype) -> None:
    x = (1e4 * random(2, 3, 7)).to(dtype)  # its squares are beyond float16
    assert rms(x).dtype == torch.float32
    close(rms(x), by_definition(x))


def test_the_norm_has_a_weight_and_keeps_the_type() -> None:
    norm, x = RMSNorm(7), random(2, 3, 7).float()
    assert [*norm.state_dict()] == ["weight"] and norm.eps == 1e-6
    with torch.no_grad():
        norm.weight.copy_(random(7, seed=1))
    close(norm(x), by_definition(x) * norm.weight.double())
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    rounded = by_definition(x.bfloat16()).bfloat16() * norm.weight.bfloat16()
    close(norm(x.bfloat16()), rounded.double(), rtol=0.01)


def test_a_modulation_scales_and_shifts_and_decides_the_type() -> None:
    x, scale, shift = (random(2, 3, 7, seed=seed).float() for seed in range(3))
    exact = by_definition(x) * (1 + scale.double()) + shift.double()
    close(modulated(x, scale, shift), exact)
    one = slice(0, 1)  # a row for all positions
    exact = by_definition(x) * (1 + scale[:, one].double()) + shift[:, one].double()
    close(modulated(x, scale[:, one], shift[:, one]), exact)
    half = modulated(x, scale.bfloat16(), shift.bfloat16())
    assert half.dtype == torch.bfloat16
    exact = by_definition(x) * (1 + scale.bfloat16().double()) + shift.bfloat16().double()
    close(half, exact, rtol=0.01)


def test_the_perceptron_gates_by_the_exact_gelu() -> None:
    torch.manual_seed(0)
    mlp, x = GatedMlp(6, 10).double(), 2 * random(2, 3, 6)
    gate, rise = mlp.gate(x), mlp.rise(x)
    gelu = gate / 2 * (1 + torch.erf(gate / math.sqrt(2)))
    torch.testing.assert_close(mlp(x), mlp.fall(gelu * rise), rtol=1e-12, atol=1e-12)
    assert mlp.gate.out_features == mlp.rise.out_features == mlp.fall.in_features == 10


def test_dropout_comes_last_and_in_training_only() -> None:
    torch.manual_seed(0)
    mlp, x = GatedMlp(6, 10, drop=0.5), random(4, 3, 6).float()
    whole, trained = mlp.eval()(x), mlp.train()(x)
    dropped = trained == 0
    assert 0.2 < dropped.float().mean() < 0.8
    torch.testing.assert_close(trained[~dropped], 2 * whole[~dropped])


@pytest.mark.parametrize(("width", "hidden"), [(768, 2048), (1024, 2730), (1536, 4096)])
def test_hidden_widths_are_the_published_ones(width: int, hidden: int) -> None:
    assert gated_hidden(width, 4) == gated_hidden(width, 4.0) == hidden


def test_minus_one_and_the_number_of_classes_are_no_class() -> None:
    classes = Classes(3, 8)
    assert classes.weight.shape == (4, 8)
    vectors = classes(torch.tensor([0, 2, 3, -1]))
    assert torch.equal(vectors, classes.weight[[0, 2, 3, 3]])
    vectors[3].sum().backward()
    assert classes.weight.grad is not None
    assert classes.weight.grad.any(dim=1).tolist() == [False, False, False, True]


@pytest.mark.parametrize("label", [-2, 4, 1000])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels must lie in -1..3, got \[0, {label}\]"):
        Classes(3, 8)(torch.tensor([0, label]))


@pytest.mark.parametrize("label", [-1, 3])
def test_without_a_null_class_every_label_is_a_class(label: int) -> None:
    classes = Classes(3, 8, null=False)
    assert classes.weight.shape == (3, 8)
    assert torch.equal(classes(torch.tensor([2, 0])), classes.weight[[2, 0]])
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.2, got \[0, {label}\]"):
        classes(torch.tensor([0, label]))


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_what_is_added_to_the_mean_square_can_be_chosen(eps: float) -> None:
    x = (1e-3 * random(2, 3, 7)).float()
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + eps).sqrt()
    close(RMSNorm(7, eps)(x), exact)
    close(rms(x, eps), exact)


def test_the_perceptron_may_gate_by_silu_without_biases() -> None:
    torch.manual_seed(0)
    mlp, x = GatedMlp(6, 10, silu=True).double(), 2 * random(2, 3, 6)
    assert sorted(mlp.state_dict()) == ["fall.weight", "gate.weight", "rise.weight"]
    gate, rise = x @ mlp.gate.weight.mT, x @ mlp.rise.weight.mT
    exact = (gate / (1 + (-gate).exp()) * rise) @ mlp.fall.weight.mT
    torch.testing.assert_close(mlp(x), exact, rtol=1e-12, atol=1e-12)
