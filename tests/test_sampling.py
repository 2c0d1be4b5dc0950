from dataclasses import replace

import pytest
import torch

from var.sampling import Condition, Guide, Sampling


def test_a_single_number_is_the_published_guidance_that_grows_from_none() -> None:
    sampling = Sampling(guidance=1.5)
    assert [sampling.guide(p).scale for p in (0.0, 0.5, 1.0)] == [1.0, 1.75, 2.5]
    assert sampling.guide(0.0).rows == 2
    assert sampling == Sampling(guidance=(1.0, 2.5))


def test_without_guidance_the_null_half_is_left_out() -> None:
    guide = Sampling(guidance=0).guide(0.5)
    y = torch.randn(2, 3)
    assert guide.rows == 1 and guide.spread(y) is y and guide(y) is y
    assert Sampling(guidance=(2.0, 1.0)).guide(1.0).rows == 2


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, -1.0])
def test_guidance_goes_from_null_through_given(scale: float) -> None:
    given, null = torch.randn(2, 3), torch.randn(2, 3)
    guided = Guide(scale=scale, rows=2)(torch.cat([given, null]))
    torch.testing.assert_close(guided, null + scale * (given - null))


def test_guides_know_the_progress() -> None:
    assert Sampling().guide(0.25).progress == 0.25


def test_null_rows_follow_the_labels() -> None:
    condition = Condition(torch.tensor([3, -1]))
    assert condition.spread(2).labels.tolist() == [3, -1, -1, -1]
    assert condition.spread(1) is condition
    assert len(condition) == 2


def test_labels_are_dropped_where_the_draw_is_small() -> None:
    condition = Condition(torch.tensor([3, 4, 5]))
    assert condition.dropped(torch.tensor([0.05, 0.1, 0.9]), 0.1).labels.tolist() == [-1, 4, 5]


@pytest.mark.parametrize("labels", [torch.zeros(2, 1, dtype=torch.long), torch.zeros(2)])
def test_labels_are_a_row_of_whole_numbers(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="whole numbers of shape"):
        Condition(labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance", float("nan")),
        ("guidance", (1.0, float("inf"))),
        ("guidance", (1.0, 2.0, 3.0)),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("steps", 0),
        ("steps", -1),
        ("steps", 2.5),
        ("steps", (5, 0)),
        ("steps", []),
        ("interval", -0.1),
        ("interval", 1.1),
        ("interval", float("nan")),
        ("interval", (0.5, 0.2)),
        ("interval", (0.0, float("nan"))),
        ("interval", (0.5,)),
        ("interval", (0.0, 0.5, 1.0)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})


def test_settings_may_differ_from_group_to_group() -> None:
    sampling = Sampling(temperature=[1.1, 1.0], top_k=(5, 3), top_p=0.9)
    assert sampling.at(1) == Sampling(temperature=1.0, top_k=3, top_p=0.9)
    sampling.check(2)
    with pytest.raises(ValueError, match="temperature is given for 2 groups, the schedule has 3"):
        sampling.check(3)
    with pytest.raises(ValueError, match="top_p is an empty list"):
        Sampling(top_p=())
    with pytest.raises(ValueError, match="top_k"):
        Sampling(top_k=(5, -1))


def test_a_single_time_is_the_published_end_of_guidance() -> None:
    assert Sampling().interval == (0.0, 1.0)
    assert Sampling(interval=0.9) == Sampling(interval=(0.0, 0.9)) == Sampling(interval=[0, 0.9])
    assert Sampling(interval=0).interval == (0.0, 0.0)
    assert Sampling(interval=(0.4, 0.4)).interval == (0.4, 0.4)


def test_settings_of_a_flow_may_be_changed_one_by_one() -> None:
    sampling = Sampling(guidance=(1.0, 4.3), interval=0.9, steps=[4, 8], solver="published")
    assert isinstance(hash(sampling), int)
    changed = replace(sampling, steps=25)
    assert (changed.interval, changed.scales, changed.steps) == ((0.0, 0.9), (1.0, 4.3), 25)
    assert replace(changed, steps=(4, 8)) == sampling


def test_a_flow_may_take_other_steps_at_every_group() -> None:
    sampling = Sampling(steps=[4, 8, 25], solver="heun", interval=(0.2, 0.7), temperature=0.9)
    assert sampling.steps == (4, 8, 25)
    alone = Sampling(solver="heun", interval=(0.2, 0.7), temperature=0.9, steps=8)
    assert sampling.at(1) == alone and alone.at(1) is alone
    sampling.check(3)
    alone.check(3)
    with pytest.raises(ValueError, match="steps is given for 3 groups, the schedule has 5"):
        sampling.check(5)
    with pytest.raises(ValueError, match="steps is an empty list: give one number, or one per"):
        Sampling(steps=())


def test_a_null_half_that_weighs_nothing_is_not_predicted() -> None:
    h, seen = torch.randn(6, 2), []
    for scale in (1.0, 2.0):
        guided = Guide(scale=scale, rows=2).of(lambda x: seen.append(len(x)) or x * 3, h)
        torch.testing.assert_close(guided, Guide(scale=scale, rows=2)(h * 3))
    assert seen == [3, 6]
