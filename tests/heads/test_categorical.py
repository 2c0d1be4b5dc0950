import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from var.heads.categorical import Categorical, CategoricalPrediction, filtered
from var.random import Rng
from var.sampling import Guide, Sampling

SPAN = tiny.SCHEDULE[1:2]

# Few different values, so that ties are common; and wide enough that probabilities underflow.
logit_rows = st.lists(
    st.one_of(st.integers(-4, 4), st.integers(-200, 200)), min_size=1, max_size=24
).map(lambda row: torch.tensor(row, dtype=torch.float32) / 2)
top_ks, top_ps = st.integers(0, 30), st.one_of(st.just(1.0), st.floats(0, 1))


def kept_by_definition(row: Tensor, top_k: int, top_p: float) -> tuple[Tensor, bool]:
    """Return the surviving logits in rising order, and whether rounding could decide otherwise."""
    rising = row.double().sort().values
    if 0 < top_k <= len(row):
        rising = rising[rising >= rising[-top_k]]
    mass = rising.softmax(dim=0).cumsum(dim=0)
    close = bool(((mass - (1 - top_p)).abs() < 1e-5).any())
    if top_p > 0:
        stays = mass > 1 - top_p
        stays[-1] = True
        rising = rising[stays]
    return rising.float(), close and 0 < top_p < 1


@given(row=logit_rows, top_k=top_ks, top_p=top_ps)
def test_filters_keep_what_their_definition_keeps(row: Tensor, top_k: int, top_p: float) -> None:
    expected, close = kept_by_definition(row, top_k, top_p)
    result = filtered(row, top_k, top_p)
    kept = result > -torch.inf
    assert torch.equal(result[kept], row[kept]), "logits that stay do not change"
    if not (close or top_p == 1):  # at exactly 1 only underflow is removed, in float32
        assert torch.equal(result[kept].sort().values, expected)


@given(row=logit_rows, top_k=top_ks, top_p=top_ps)
def test_filters_never_exclude_the_most_likely_code(row: Tensor, top_k: int, top_p: float) -> None:
    result = filtered(row, top_k, top_p)
    assert result.argmax() == row.argmax()
    torch.testing.assert_close(result.softmax(dim=-1).sum(), torch.tensor(1.0))


@given(row=logit_rows, top_k=st.integers(1, 30))
def test_top_k_keeps_ties_with_the_last(row: Tensor, top_k: int) -> None:
    kept = filtered(row, top_k) > -torch.inf
    assert kept.sum() >= min(top_k, len(row))
    assert row[kept].min() > row[~kept].max() if (~kept).any() else True


@given(row=logit_rows, top_p=st.floats(0.01, 0.99))
def test_top_p_keeps_at_least_that_mass(row: Tensor, top_p: float) -> None:
    kept = filtered(row, top_p=top_p) > -torch.inf
    assert row.double().softmax(dim=0)[kept].sum() > top_p - 1e-5


def test_each_position_is_filtered_on_its_own() -> None:
    logits = torch.randn(3, 4, 50)
    together = filtered(logits, top_k=9, top_p=0.8)
    for row, result in zip(logits.flatten(0, 1), together.flatten(0, 1), strict=True):
        assert torch.equal(filtered(row, 9, 0.8), result)


def test_shaping_leaves_the_prediction_as_it_was() -> None:
    logits = torch.randn(2, 3, 20)
    before = logits.clone()
    prediction = CategoricalPrediction(logits)
    prediction.shaped(Sampling(temperature=2, top_k=3, top_p=0.5, smooth=True)).sample(Rng([0, 1]))
    assert torch.equal(prediction.logits, before)


def test_temperature_divides_logits_before_the_filters() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    hot = CategoricalPrediction(logits).shaped(Sampling(temperature=10, top_p=0.7))
    torch.testing.assert_close(hot.logits, logits / 10)  # nothing was excluded yet
    cold = CategoricalPrediction(logits).shaped(Sampling(temperature=0.1, top_p=0.7))
    assert (cold.probs > 0).sum() == 1


def test_samples_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    prediction = CategoricalPrediction(probs.log().expand(4, 5000, -1))
    ids = prediction.sample(Rng.batch(0, 4))
    shares = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    torch.testing.assert_close(shares, probs, rtol=0, atol=0.015)  # 4 standard deviations


def test_excluded_codes_are_never_drawn() -> None:
    prediction = CategoricalPrediction(torch.randn(2, 200, 16)).shaped(Sampling(top_k=3))
    drawn = prediction.sample(Rng([1, 2]))
    assert (prediction.logits.gather(-1, drawn[..., None]) > -torch.inf).all()


@pytest.mark.parametrize("smooth", [False, True])
def test_an_image_is_drawn_the_same_alone_and_in_a_batch(smooth: bool) -> None:
    prediction = CategoricalPrediction(torch.randn(3, 5, 16)).shaped(Sampling(smooth=smooth))
    together = prediction.sample(Rng([7, 8, 9]))
    alone = type(prediction)(prediction.logits[1:2]).sample(Rng([8]))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("smooth", [False, True])
def test_without_streams_the_most_likely_code_is_taken(smooth: bool) -> None:
    prediction = CategoricalPrediction(torch.randn(2, 5, 16)).shaped(Sampling(smooth=smooth))
    assert torch.equal(prediction.sample(), prediction.logits.argmax(dim=-1))


def test_smooth_samples_are_mixtures_that_sharpen_with_progress() -> None:
    logits = torch.randn(2, 50, 16)
    early, late = (
        CategoricalPrediction(logits, progress)
        .shaped(Sampling(top_k=6, smooth=True))
        .sample(Rng([0, 1]))
        for progress in (0.0, 1.0)
    )
    for weights in (early, late):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 50))
        assert ((weights > 0).sum(dim=-1) <= 6).all()
    assert late.amax(dim=-1).mean() > early.amax(dim=-1).mean() + 0.05


def test_the_head_guides_logits_and_tells_the_progress() -> None:
    head = Categorical(8, 16)
    h = torch.randn(4, 3, 8)
    prediction = head(h, SPAN, Guide(scale=2.5, rows=2, progress=0.5))
    given_half, null = head.linear(h).chunk(2)
    torch.testing.assert_close(prediction.logits, null + 2.5 * (given_half - null))
    assert prediction.progress == 0.5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_per_token_in_float32(smoothing: float) -> None:
    head = Categorical(8, 16, label_smoothing=smoothing).bfloat16()
    h, tokens = torch.randn(2, 5, 8).bfloat16(), torch.randint(16, (2, 5))
    each = head.loss(h, tokens, SPAN, Rng([0, 1]))
    logits = head.linear(h).float().flatten(0, 1)
    expected = F.cross_entropy(
        logits, tokens.flatten(), label_smoothing=smoothing, reduction="none"
    )
    assert each.dtype == torch.float32 and each.shape == (2, 5)
    torch.testing.assert_close(each.flatten(), expected)
