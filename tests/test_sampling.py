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


def test_a_null_half_that_weighs_nothing_is_not_predicted() -> None:
    h, seen = torch.randn(6, 2), []
    for scale in (1.0, 2.0):
        guided = Guide(scale=scale, rows=2).of(lambda x: seen.append(len(x)) or x * 3, h)
        torch.testing.assert_close(guided, Guide(scale=scale, rows=2)(h * 3))
    assert seen == [3, 6]
