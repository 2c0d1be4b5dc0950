from dataclasses import replace

import pytest
import torch

from var.condition import Condition
from var.errors import UserError
from var.sampling import Guide, Sampling
from var.schedule import Schedule


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
        ("guided_groups", -1),
        ("guided_groups", 2.5),
        ("guided_groups", True),
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


def test_a_scale_for_each_position_guides_each_position() -> None:
    given, null = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    guided = Guide(scale=(0.5, 1.0, 3.0), rows=2)(torch.cat([given, null]))
    for i, scale in enumerate((0.5, 1.0, 3.0)):
        torch.testing.assert_close(guided[:, i], null[:, i] + scale * (given - null)[:, i])
    assert torch.equal(guided[:, 1], given[:, 1])


def test_positions_that_are_not_guided_may_be_infinite() -> None:
    given, null = torch.full((1, 2, 3), -torch.inf), torch.full((1, 2, 3), -torch.inf)
    given[0, 1, 0] = 2.0
    guided = Guide(scale=(1.0, 1.0), rows=2)(torch.cat([given, null]))
    assert torch.equal(guided, given)


def test_a_guide_for_each_position_predicts_both_halves() -> None:
    h, seen = torch.randn(6, 2, 3), []
    guide = Guide(scale=(1.0, 2.0), rows=2)
    guided = guide.of(lambda x: seen.append(len(x)) or x * 3, h)
    torch.testing.assert_close(guided, guide(h * 3))
    assert seen == [6]


def test_scales_of_a_span_are_those_of_its_groups() -> None:
    sampling, schedule = Sampling(guidance=(1.0, 4.0)), Schedule.scales([1, 2, 1, 1])
    assert sampling.guide_over(schedule[2:3]) == sampling.guide(2 / 3)
    guide = sampling.guide_over(schedule[1:3])
    assert guide.scale == pytest.approx((2.0,) * 4 + (3.0,)) and guide.progress == 1 / 3
    even = Sampling(guidance=(3.0, 3.0)).guide_over(schedule[:])
    assert even == Guide(3.0, 2, 0.0), "one number where all are the same"
    assert Sampling().guide_over(schedule[:3]).rows == 1
    assert Sampling(guidance=(2.0, 3.0)).guide_over(Schedule.raster(1)[:]) == Guide(2.0, 2, 0.0)


def test_guidance_ends_after_the_guided_groups() -> None:
    schedule = Schedule.raster((1, 5))
    sampling = Sampling(guidance=(3.0, 3.0), guided_groups=2)
    rows = [sampling.guide_over(schedule[k : k + 1]).rows for k in range(5)]
    assert rows == [2, 2, 1, 1, 1]
    assert sampling.guide_over(schedule[0:2]) == Guide(3.0, 2, 0.0)
    assert sampling.guide_over(schedule[1:4]) == Guide((3.0, 1.0, 1.0), 2, 0.25)
    assert sampling.guide_over(schedule[2:4]) == Guide(1.0, 1, 0.5)
    never = replace(sampling, guided_groups=0)
    assert never.guide_over(schedule[:]) == Guide(1.0, 1, 0.0)
    assert Sampling(guided_groups=3).guide_over(schedule[:1]).rows == 1


def test_settings_that_differ_within_a_span_are_refused_by_name() -> None:
    schedule = Schedule.raster((1, 4))
    sampling = Sampling(temperature=(1.0, 0.5, 0.5, 0.5), top_k=(9, 9, 9, 3), top_p=0.9)
    assert sampling.over(schedule[1:3]) == sampling.at(1) == sampling.at(2)
    assert sampling.over(schedule[3:]) == sampling.at(3)
    with pytest.raises(UserError, match=r"top_k=\[9, 9, 9, 3\] differs among groups 1\.\.3, which"):
        sampling.over(schedule[1:])
    with pytest.raises(UserError, match=r"^temperature=.* groups 0\.\.1, .*: give one number"):
        sampling.over(schedule[:2])
    alone = Sampling(temperature=0.5)
    assert alone.over(schedule[:]) is alone


def test_what_counts_of_a_text_comes_last_and_in_its_order() -> None:
    text = torch.arange(1.0, 9.0).view(2, 4, 1)
    condition = Condition.of_text(text, torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]]))
    assert condition.text is not None and condition.valid is not None
    assert condition.text[..., 0].tolist() == [[0, 0, 1, 3], [0, 5, 6, 7]]
    assert condition.valid.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert condition.labels.tolist() == [0, 0]
    whole = Condition.of_text(text)
    assert whole.text is text and whole.valid is None


def test_texts_are_spread_and_dropped_with_their_labels() -> None:
    condition = Condition.of_text(torch.randn(2, 3, 4), torch.ones(2, 3))
    both = condition.spread(2)
    assert both.labels.tolist() == [0, 0, -1, -1] and len(both) == 4
    assert both.text is not None and condition.text is not None and both.valid is not None
    assert torch.equal(both.text[2:], condition.text) and both.valid.shape == (4, 3)
    dropped = condition.dropped(torch.tensor([0.0, 0.9]), 0.5)
    assert dropped.labels.tolist() == [-1, 0] and dropped.text is condition.text


@pytest.mark.parametrize(
    ("text", "valid", "message"),
    [
        (torch.zeros(3, 4, 5), None, r"text does not fit 2 labels: \(3, 4, 5\)"),
        (torch.zeros(2, 4), None, r"text does not fit 2 labels: \(2, 4\)"),
        (torch.zeros(2, 4, 5), torch.ones(3, 4), r"valid does not fit 2 labels: \(3, 4\)"),
        (torch.zeros(2, 4, 5), torch.ones(2, 3), "4 features, of which 3 are marked"),
    ],
)
def test_texts_belong_to_labels(
    text: torch.Tensor, valid: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Condition(torch.tensor([0, 0]), text, valid)
