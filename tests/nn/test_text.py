"""A text in front of an image: means and one key are the softmax over keys that are all zero."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from var.condition import Condition
from var.nn.rotary import attend_back
from var.nn.text import Text, means, scores, shares

ROWS, HEADS, TEXT, IMAGE, CHANNELS = 4, 2, 5, 6, 8
# Of no text, of all of it, of its end, and with features in between that do not count.
VALID = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 0, 0, 1]]).float()


def random(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def mask(valid: Tensor, length: int) -> Tensor:
    """Return who sees whom of all features and so many tokens behind them, (R, 1, S, S) bool."""
    size = valid.shape[1] + length
    seen = torch.ones(size, size, dtype=torch.bool).tril().repeat(len(valid), 1, 1, 1)
    seen[..., : valid.shape[1]] &= valid.bool()[:, None, None]
    return seen | torch.eye(size, dtype=torch.bool)


def explicit(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Return the masked softmax attention (R, N, L, d)."""
    weights = (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return weights @ v


def test_features_see_the_mean_of_those_that_count_up_to_themselves() -> None:
    values = random(ROWS, HEADS, TEXT, CHANNELS)
    zero = torch.zeros_like(values)
    exact = explicit(zero, zero, values, mask(VALID, 0))
    seen, _ = means(values, VALID)
    torch.testing.assert_close(seen, exact.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queries", [IMAGE, 3, 1])
def test_one_key_and_one_value_stand_for_a_text(queries: int) -> None:
    values = random(ROWS, HEADS, TEXT, CHANNELS)
    q, k, v = random(3, ROWS, HEADS, IMAGE, CHANNELS, seed=1)
    zero = torch.zeros_like(values)
    # The first token's place is that of the last feature: IMAGE - 1 tokens come behind.
    behind = slice(1, None)
    keys, whole = (torch.cat([a, b[:, :, behind]], dim=2) for a, b in ((zero, k), (values, v)))
    asked = torch.cat([zero, q[:, :, behind]], dim=2)
    exact = explicit(asked, keys, whole, mask(VALID, IMAGE - 1))[:, :, -queries:]

    _, mean = means(values, VALID)
    short = torch.cat([torch.zeros_like(mean), k[:, :, behind]], dim=2)
    v = torch.cat([mean, v[:, :, behind]], dim=2)
    bias = scores(VALID, queries, IMAGE, torch.float64)
    assert bias.shape == (ROWS, 1, queries, IMAGE)
    ours = attend_back(q[:, :, -queries:], short, v, bias).unflatten(2, (HEADS, -1))
    ours, exact = ours.float(), exact.transpose(1, 2).float()
    late = 1 if queries == IMAGE else 0  # the text itself is read elsewhere
    torch.testing.assert_close(ours[:, late:], exact[:, late:], rtol=1e-5, atol=1e-6)
    assert ours.isfinite().all()


def test_the_first_reading_of_one_place_is_finite_even_without_a_text() -> None:
    assert not scores(VALID, 1, 1, torch.float32).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_taken_in_float32(dtype: torch.dtype) -> None:
    values = (1000 + random(2, 1, 300, 4)).to(dtype)  # their sum is beyond float16
    _, mean = means(values, torch.ones(2, 300))
    assert mean.dtype == dtype
    exact = values.double().mean(dim=2, keepdim=True)
    torch.testing.assert_close(mean.double(), exact, rtol=0.004, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_text_weighs_what_it_should_in_half_precision_too(dtype: torch.dtype) -> None:
    valid = (torch.arange(120) < torch.arange(1, 121)[:, None]).float()
    bias = scores(valid, 1, 2, dtype).double()
    assert bias.dtype == torch.float64 and scores(valid, 1, 2, dtype).dtype == dtype
    weight = (bias[:, 0, 0, 0] - bias[:, 0, 0, 1]).exp()
    torch.testing.assert_close(weight, valid.double().sum(dim=1), rtol=1e-4, atol=0)


def test_features_rise_and_fall_and_no_text_is_the_null_one() -> None:
    torch.manual_seed(0)
    made, features = Text(7, TEXT, 12), random(2, TEXT, 7).float()
    x, valid = made(
        Condition(torch.tensor([0, -1]), features, torch.tensor([[1] * TEXT, [0] * TEXT]))
    )
    gelu = F.gelu(features[:1] @ made.rise.weight.T, approximate="tanh")
    torch.testing.assert_close(x[:1], gelu @ made.fall.weight.T)
    null, _ = made(Condition(torch.tensor([0]), made.null[None]))
    torch.testing.assert_close(x[1:], null)
    assert valid.tolist() == [[1.0] * TEXT, [0.0] * TEXT]
    assert "null" in made.state_dict() and not made.null.requires_grad


def test_without_marks_all_features_count() -> None:
    assert torch.equal(shares(Condition(torch.tensor([0, -1])), 3), torch.ones(2, 3))
