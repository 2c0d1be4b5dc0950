"""Best of several: who wins, who goes on, what it costs, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import KEYED_RUNS, RUNS, make_run
from var import choices, edits
from var.choices import DECODINGS
from var.condition import Condition
from var.decoding.collaborative import Collaborative
from var.decoding.counted import Counted
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.pipeline import Pipeline
from var.search import Best, Search, best_of

LABELS = [0, 1, 2]


@pytest.fixture
def pipe(tiny_run: Any) -> Pipeline:
    return Pipeline(tiny_run)


def brightness(images: Tensor, condition: Condition) -> Tensor:
    """Score images by something that differs from candidate to candidate and grows with none."""
    return images[:, 0].mean(dim=(1, 2)) - images[:, 2].std(dim=(1, 2)) * condition.labels


def best(pipe: Pipeline, number: int = 5, scorer: Any = brightness, **options: Any) -> Best:
    return best_of(pipe, LABELS, number=number, scorer=scorer, seed=3, **options)


def candidates(pipe: Pipeline, number: int = 5, **settings: Any) -> Tensor:
    """Return all candidates (B, N, 3, H, W) as the pipeline makes them."""
    return pipe(LABELS, number=number, seed=3, **settings).unflatten(0, (len(LABELS), number))


def scores(images: Tensor) -> Tensor:
    """Return the scores (B, N) of candidates."""
    flat = brightness(images.flatten(0, 1), Condition(torch.tensor(LABELS)).each(images.shape[1]))
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
    assert len(set(found.index.flatten().tolist())) > 1 and found.cost.tolist() == [5] * 3
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
        assert found.scores.diff(dim=1).le(0).all() and (found.cost < 5).all()


@RUNS
def test_the_best_go_on_and_the_best_of_them_wins(pipe: Pipeline) -> None:
    shown: list[Tensor] = []

    def scorer(images: Tensor, condition: Condition) -> Tensor:
        shown.append(images.clone())
        return brightness(images, condition)

    last = len(pipe.schedule) - 1
    found = best_of(pipe, [1], number=5, scorer=scorer, seed=3, prune={last: 2})
    partial = [pipe.decode(c) for c in pipe.steps([1] * 5, seed=3) if c.done == last]
    close(shown[0], partial[0])
    dogs = Condition(torch.ones(5, dtype=torch.int64))
    ranks = [
        brightness(each, dogs[: len(each)]).argsort(descending=True, stable=True) for each in shown
    ]
    kept = ranks[0][:2].sort().values
    assert len(shown) == 2
    close(shown[1], pipe([1], number=5, seed=3)[kept])
    assert found.index.tolist() == [[int(kept[ranks[1][0]])]]


@pytest.mark.parametrize("blend", ["tokens", "latent"])
def test_the_best_of_edits_are_the_best_of_the_very_edits(pipe: Pipeline, blend: str) -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    edit = edits.inpaint(image, box=[0, 0, 0.5, 1], blend=blend, paste=True)
    every = candidates(pipe, edit=edit)
    for batch_size in (4, 32):
        found = best(pipe, edit=edit, batch_size=batch_size)
        assert torch.equal(found.index[:, 0], scores(every).argmax(dim=1))
        close(found.images, picked(every, found.index))
        pruned = best(pipe, edit=edit, prune={1: 3, 2: 2}, top=2, batch_size=batch_size)
        close(pruned.images, picked(every, pruned.index))
    assert torch.equal(found.images[..., 4:, :], image[:, 4:].expand(3, 1, -1, -1, -1))


def test_who_keeps_all_prunes_nothing(pipe: Pipeline) -> None:
    plain = best(pipe)
    for prune in ({1: 1.0}, {1: 5, 2: 1.0}, {}, None):
        assert torch.equal(best(pipe, prune=prune).images, plain.images)
        assert best(pipe, prune=prune).cost.tolist() == [5] * 3


@pytest.mark.parametrize("prune", [{}, {1: 3, 2: 0.5}])
@pytest.mark.parametrize("batch_size", [2, 7, 100])
def test_the_batch_size_changes_nothing(
    pipe: Pipeline, batch_size: int, prune: dict[int, float]
) -> None:
    ours, plain = (best(pipe, prune=prune, batch_size=n, top=2) for n in (batch_size, 32))
    assert torch.equal(ours.index, plain.index) and torch.equal(ours.seeds, plain.seeds)
    close(ours.images, plain.images)
    close(ours.cost, plain.cost)


def test_of_equals_the_earlier_stays_and_wins(pipe: Pipeline) -> None:
    def equal(images: Tensor, condition: Condition) -> Tensor:
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
        assert found.cost.tolist() == pytest.approx([read / 21] * 3)


def test_what_is_guided_counts_twice(pipe: Pipeline) -> None:
    found = best(pipe, 2, prune={2: 1}, guidance=1.5, guided_groups=1)
    # Plain: 2 rows of the first scale, 1 of the others. The survivor is not guided any more.
    assert found.cost.tolist() == pytest.approx([(2 * (2 + 4) + 21) / (2 + 20)] * 3)


def test_shares_are_rounded_up_in_decimal_numbers() -> None:
    assert Search(brightness, 30, {1: 0.1}).stages(3) == [(0, 30), (1, 3), (3, 1)]
    assert Search(brightness, 5, {2: 0.5, 1: 0.9}).stages(3) == [(0, 5), (2, 3), (3, 1)]
    assert Search(brightness, 3, {1: 0.01}).stages(2) == [(0, 3), (1, 1), (2, 1)]


def test_json_has_strings_for_numbers_of_groups() -> None:
    prune: Any = {"2": 0.5, "1": 4}
    assert Search(brightness, 5, prune).prune == {1: 4, 2: 0.5}


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
    with pytest.raises(UserError, match="this decoding would lose its guesses: use decoding="):
        best(pipe, prune={1: 2}, decoding=Counted(choices.decoding(pipe, "jacobi")))


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
        ({"prune": 0.5}, r"prune=0.5: say after how many groups what stays, as in \{3: 0.5\}"),
        ({"prune": [2]}, r"prune=\[2\]: say after how many groups"),
        ({"prune": {"one": 2}}, r"prune=\{'one': 2\}: an image of 3 groups .* not after one"),
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
        (lambda images, condition: images[:1, 0, 0, 0], r"must return \(15,\), .* not \(1,\)"),
        (lambda images, condition: images.flatten(1), r"one score an image, not \(15, 192\)"),
        (lambda images, condition: 0.5, "one score an image, not float"),
        (
            lambda images, condition: images[:, 0, 0, 0] * torch.nan,
            "returned nan after 3 of 3 groups",
        ),
        (lambda images, condition: images[:, 0, 0, 0] - torch.inf, "returned -inf after 3 of 3"),
    ],
)
def test_scores_are_one_finite_number_an_image(
    pipe: Pipeline, scorer: Callable[[Tensor, Condition], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        best(pipe, scorer=scorer)


def test_a_decoding_is_as_good_as_its_name(pipe: Pipeline) -> None:
    for decoding in ("sequential", Sequential(pipe.model), DECODINGS["sequential"](pipe)):
        assert torch.equal(best(pipe, decoding=decoding).images, best(pipe).images)
