"""Schedules and parameter groups; the published values are in the golden tests."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import model
from var.training.optim import cosine_decay, groups, published_rate

KINDS = ["cos", "lin", "lin0", "lin00", "lin0.8", "exp"]


@given(kind=st.sampled_from(KINDS), warmup=st.integers(0, 20), total=st.integers(30, 90))
def test_rates_rise_to_the_peak_then_fall_to_the_final_share(
    kind: str, warmup: int, total: int
) -> None:
    rates = [
        published_rate(i, kind=kind, peak=2.0, warmup_steps=warmup, total_steps=total, final=0.1)
        for i in range(total)
    ]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(2.0) and rates[-1] == pytest.approx(0.2)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="'step'"):
        published_rate(9, kind="step", peak=1, warmup_steps=0, total_steps=10)


def test_weight_decay_goes_from_start_to_end() -> None:
    assert cosine_decay(0, 10, 0.05, 0.2) == pytest.approx(0.05)
    assert cosine_decay(9, 10, 0.05, 0.2) == pytest.approx(0.2)


def test_every_trained_parameter_is_in_one_group_and_vectors_do_not_decay() -> None:
    made = model()
    made.head.linear.bias.requires_grad_(False)
    plain, decayed = groups(made, 0.05)
    names = plain["names"] + decayed["names"]
    assert sorted(names) == sorted(n for n, p in made.named_parameters() if p.requires_grad)
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    assert all(p.ndim > 1 for p in decayed["params"])
    assert "stem.positions" in plain["names"] and "head.linear.weight" in decayed["names"]
    assert isinstance(plain["params"][0], torch.nn.Parameter)
