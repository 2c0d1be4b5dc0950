"""Best of several: who wins, who goes on, what it costs, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import KEYED_RUNS, RUNS, make_run
from var.choices import DECODINGS
from var.decoding.collaborative import Collaborative
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.metrics.networks import Seen
from var.pipeline import Pipeline
from var.pixels import to_uint8
from var.scorers import ClassLogProbability
from var.search import Best, Search, best_of

LABELS = [0, 1, 2]


@pytest.fixture
def pipe(tiny_run: Any) -> Pipeline:
    return Pipeline(tiny_run)


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    """Score images by something that differs from candidate to candidate and grows with none."""
    return images[:, 0].mean(dim=(1, 2)) - images[:, 2].std(dim=(1, 2)) * labels


def best(pipe: Pipeline, number: int = 5, scorer: Any = brightness, **options: Any) -> Best:
    return best_of(pipe, LABELS, number=number, scorer=scorer, seed=3, **options)


def candidates(pipe: Pipeline, number: int = 5, **settings: Any) -> Tensor:
    """Return all candidates (B, N, 3, H, W) as the pipeline makes them."""
    return pipe(LABELS, number=number, seed=3, **settings).unflatten(0, (len(LABELS), number))


def scores(images: Tensor) -> Tensor:
    """Return the scores (B, N) of candidates."""
    flat = brightness(images.flatten(0, 1), torch.tensor(LABELS).repeat_interleave(images.shape[1]))
    return flat.unflatten(0, images.shape[:2])


def close(ours: Tensor, theirs: Tensor) -> None:
    # Groups that are read once more, and batches of other sizes, sum in another order.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5, check_dtype=False)


def picked(images: Tensor, index: Tensor) -> Tensor:
    return images[torch.arange(len(images))[:, None], index]


@RUNS
def test_the_winner_is_the_best_of_the_very_images_that_the_pipeline_makes(pipe: Pipeline) -> None:
    found, every = best(pipe), candidates(pipe)
    assert found.images.shape == (3, 1, 3, 8, 8) and not found.images.is_inference()
    assert torch.equal(found.index[:, 0], scores(every).argmax(dim=1))
    close(found.images, picked(every, found.index))
    close(found.scores, scores(every).gather(1, found.index))
    assert len(set(found.index.flatten().tolist())) > 1 and found.cost == 5.0
    for label, seed, image in zip(LABELS, found.seeds, found.images, strict=True):
        close(pipe([label], seed=int(seed)), image)


def test_of_several_the_best_comes_first(pipe: Pipeline) -> None:
    found, wanted = best(pipe, top=3), scores(candidates(pipe)).sort(dim=1, descending=True)
    assert torch.equal(found.index, wanted.indices[:, :3])
    close(found.scores, wanted.values[:, :3])


@RUNS
def test_survivors_become_what_they_would_have_become(pipe: Pipeline) -> None:
    every = candidates(pipe)
    for prune in ({1: 3}, {1: 4, 2: 0.75}):
        found = best(pipe, prune=prune, top=3)
        close(found.images, picked(every, found.index))
        close(found.scores, scores(found.images))
        assert found.scores.diff(dim=1).le(0).all() and found.cost < 5


@RUNS
def test_the_best_go_on_and_the_best_of_them_wins(pipe: Pipeline) -> None:
    shown: list[Tensor] = []

    def scorer(images: Tensor, labels: Tensor) -> Tensor:
        shown.append(images.clone())
        return brightness(images, labels)

    last = len(pipe.schedule) - 1
    found = best_of(pipe, [1], number=5, scorer=scorer, seed=3, prune={last: 2})
    partial = [pipe.decode(c) for c in pipe.steps([1] * 5, seed=3) if c.done == last]
    close(shown[0], partial[0])
    ranks = [
        brightness(each, torch.ones(1)).argsort(descending=True, stable=True) for each in shown
    ]
    kept = ranks[0][:2].sort().values
    assert len(shown) == 2
    close(shown[1], pipe([1], number=5, seed=3)[kept])
    assert found.index.tolist() == [[int(kept[ranks[1][0]])]]


def test_who_keeps_all_prunes_nothing(pipe: Pipeline) -> None:
    plain = best(pipe)
    for prune in ({1: 1.0}, {1: 5, 2: 1.0}, {}, None):
        assert torch.equal(best(pipe, prune=prune).images, plain.images)
        assert best(pipe, prune=prune).cost == 5.0


@pytest.mark.parametrize("prune", [{}, {1: 3, 2: 0.5}])
@pytest.mark.parametrize("batch_size", [2, 7, 100])
def test_the_batch_size_changes_nothing(
    pipe: Pipeline, batch_size: int, prune: dict[int, float]
) -> None:
    ours, plain = (best(pipe, prune=prune, batch_size=n, top=2) for n in (batch_size, 32))
    assert torch.equal(ours.index, plain.index) and torch.equal(ours.seeds, plain.seeds)
    close(ours.images, plain.images)
    assert ours.cost == pytest.approx(plain.cost)


def test_of_equals_the_earlier_stays_and_wins(pipe: Pipeline) -> None:
    def equal(images: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros(len(images))

    assert best(pipe, scorer=equal, top=2).index.tolist() == [[0, 1]] * 3
    assert best(pipe, scorer=equal, prune={1: 4, 2: 3}, top=3).index.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("number", "prune", "read"),
    [
        (1, {}, 21),
        (8, {}, 8 * 21),
        (8, {1: 0.5}, 8 * 1 + 4 * 21),  # survivors read the first scale once more
        (8, {1: 0.5, 2: 1}, 8 * 1 + 4 * 5 + 21),
    ],
)
def test_the_cost_is_what_was_read(
    pipe: Pipeline, number: int, prune: dict[int, float], read: int
) -> None:
    for guidance in (0.0, 1.5):
        found = best(pipe, number, prune=prune, guidance=guidance)
        assert found.cost == pytest.approx(read / 21)


def test_what_is_guided_counts_twice(pipe: Pipeline) -> None:
    found = best(pipe, 2, prune={2: 1}, guidance=1.5, guided_groups=1)
    # Plain: 2 rows of the first scale, 1 of the others. The survivor is not guided any more.
    assert found.cost == pytest.approx((2 * (2 + 4) + 21) / (2 + 20))


def test_shares_are_rounded_up_in_decimal_numbers() -> None:
    assert Search(brightness, 30, {1: 0.1}).stages(3) == [(0, 30), (1, 3), (3, 1)]
    assert Search(brightness, 5, {2: 0.5, 1: 0.9}).stages(3) == [(0, 5), (2, 3), (3, 1)]
    assert Search(brightness, 3, {1: 0.01}).stages(2) == [(0, 3), (1, 1), (2, 1)]


@pytest.mark.parametrize("cache", ["static", "dense"])
@pytest.mark.parametrize("switch", [1, 2])
def test_two_models_work_together(pipe: Pipeline, switch: int, cache: str) -> None:
    decoding = Collaborative(pipe.model, Pipeline(make_run(seed=1)).model, switch)
    every = candidates(pipe, decoding=decoding)
    assert not torch.allclose(every, candidates(pipe))
    for prune in ({}, {1: 3}, {2: 3}):
        found = best(pipe, prune=prune, top=3, decoding=decoding, cache=cache)
        close(found.images, picked(every, found.index))


@KEYED_RUNS
def test_a_cache_that_drops_keys_serves_whole_images_only(pipe: Pipeline) -> None:
    found = best(pipe, cache="scale")
    close(found.images, picked(candidates(pipe, cache="scale"), found.index))
    with pytest.raises(UserError, match="prune has survivors read what cache=scale has dropped"):
        best(pipe, prune={1: 2}, cache="scale")


@pytest.mark.parametrize("tiny_run", ["raster"], indirect=True)
def test_guesses_are_not_taken_up_again(pipe: Pipeline) -> None:
    every = candidates(pipe, decoding="jacobi")
    found = best(pipe, decoding="jacobi")
    close(found.images, picked(every, found.index))
    with pytest.raises(UserError, match="decoding=jacobi would lose its guesses: use decoding="):
        best(pipe, prune={1: 2}, decoding="jacobi")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "number of candidates must be a whole number of 1 or more, got 0"),
        ({"number": 2.0}, "number of candidates must be a whole number of 1 or more, got 2.0"),
        ({"top": 0}, "top must be a whole number of 1 or more, got 0"),
        ({"top": 6}, "top=6 cannot be delivered: 5 candidates are left"),
        ({"top": 2, "prune": {1: 1}}, "top=2 cannot be delivered: 1 candidates are left"),
        ({"prune": {3: 2}}, r"prune=\{3: 2\}: an image of 3 groups can be judged after 1..2"),
        ({"prune": {0: 2}}, "of them, not after 0"),
        ({"prune": {1: 0.0}}, r"prune=\{1: 0.0\}: keep a share"),
        ({"prune": {1: 1.5}}, r"prune=\{1: 1.5\}: keep a share"),
        ({"prune": {1: 0}}, r"prune=\{1: 0\}: keep a share"),
        ({"prune": {1: "half"}}, r"prune=\{1: half\}: keep a share"),
        ({"prune": {1: 2, 2: 3}}, r"prune=\{2: 3\}: only 2 candidates are left by then"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_numbers_out_of_range_are_named(
    pipe: Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        best(pipe, **options)
    assert "\n" not in str(caught.value)


def test_without_labels_or_streams_there_is_nothing_to_draw(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="there is nothing to draw: no labels"):
        best_of(pipe, [], number=2, scorer=brightness)
    with pytest.raises(UserError, match="seeds must be 0 or more, got -1"):
        best_of(pipe, [0], number=2, scorer=brightness, seed=-1)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda images, labels: images[:1, 0, 0, 0], r"must return \(15,\), .* not \(1,\)"),
        (lambda images, labels: images.flatten(1), r"one score an image, not \(15, 192\)"),
        (lambda images, labels: 0.5, "one score an image, not float"),
        (lambda images, labels: images[:, 0, 0, 0] * torch.nan, "returned nan after 3 of 3 groups"),
        (lambda images, labels: images[:, 0, 0, 0] - torch.inf, "returned -inf after 3 of 3"),
    ],
)
def test_scores_are_one_finite_number_an_image(
    pipe: Pipeline, scorer: Callable[[Tensor, Tensor], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        best(pipe, scorer=scorer)


class Looker(nn.Module):
    """A network that takes dark images for cats, and bright ones for dogs."""

    name, labelled, num_features = "FD-Looker", True, 1

    def forward(self, image: Tensor) -> Seen:
        assert image.dtype == torch.uint8
        bright = image.float().mean(dim=(1, 2, 3)) / 255
        return Seen(bright[:, None], torch.stack([1 - bright, bright, 0 * bright], dim=1) * 9)


def test_a_classifier_scores_by_the_log_probability_of_the_label(pipe: Pipeline) -> None:
    images, labels = candidates(pipe)[:, 0], torch.tensor(LABELS)
    logits = Looker()(to_uint8(images)).logits
    assert logits is not None
    close(ClassLogProbability(Looker())(images, labels), logits.log_softmax(1).diag())
    light = to_uint8(candidates(pipe)).float().mean(dim=(2, 3, 4))
    found = best(pipe, scorer=ClassLogProbability(Looker()))
    assert found.index[:2, 0].tolist() == [light[0].argmin(), light[1].argmax()]


def test_a_classifier_of_other_classes_does_not_score(pipe: Pipeline) -> None:
    images = torch.zeros(2, 3, 8, 8)
    for label in (-1, 3):
        with pytest.raises(UserError, match=f"label {label} .* FD-Looker tells classes 0..2"):
            ClassLogProbability(Looker())(images, torch.tensor([0, label]))
    other = Looker()
    other.labelled = False
    with pytest.raises(UserError, match="FD-Looker does not tell the classes of the data"):
        ClassLogProbability(other)


def test_memory_running_out_halves_the_batch(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def cramped(images: Tensor, labels: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return brightness(images, labels)

    ours, plain = best(pipe, scorer=cramped, prune={2: 3}), best(pipe, prune={2: 3})
    assert torch.equal(ours.index, plain.index) and ours.cost == pytest.approx(plain.cost)
    # Of seven, the five candidates of one label were tried.
    assert [record.args for record in caplog.records] == [(15, 7), (5, 2)]
    with pytest.raises(UserError, match="out of memory for a single image"):
        best(pipe, scorer=lambda images, labels: cramped(torch.cat([images] * 4), labels))


def test_a_decoding_is_as_good_as_its_name(pipe: Pipeline) -> None:
    for decoding in ("sequential", Sequential(pipe.model), DECODINGS["sequential"](pipe)):
        assert torch.equal(best(pipe, decoding=decoding).images, best(pipe).images)
