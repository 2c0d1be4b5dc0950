"""Several groups a turn: greedy images are those of one at a time; seeds decide, nothing else."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.decoding.watched import Images, easy, images
from tests.tiny import Family
from var.cache.base import CacheKind
from var.cache.dense import Dense
from var.cache.static import Static
from var.condition import Condition
from var.decoding.guesses import GUESSERS
from var.decoding.jacobi import Jacobi
from var.decoding.jacobi_state import State
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Span
from var.tokenizers.canvas import Kept
from var.tokenizers.chain import Chain

KINDS = pytest.mark.parametrize("kind", [Dense, Static])
GUESSES = pytest.mark.parametrize("guess", GUESSERS)
TOGETHER = pytest.mark.parametrize("together", [False, True])
SAMPLINGS = {
    "plain": Sampling(guidance=(1.0, 1.0)),
    "guided": Sampling(guidance=(2.0, 2.0), top_k=5),
    "ramp": Sampling(guidance=(0.5, 4.0)),
    "ending": Sampling(guidance=(3.0, 2.0), guided_groups=7, top_p=0.9),
}
RASTER = lru_cache(lambda: tiny.raster(grid=(3, 5)))
LADDER = (1, 2, (2, 3), 3, 4)
VAR = lru_cache(lambda: tiny.model(ladder=LADDER))


@lru_cache
def greedy(model: Any, rows: int, name: str = "plain") -> Images:
    """Return what is decided one by one without streams; cases share it."""
    return images(Sequential(model), rows=rows, sampling=SAMPLINGS[name])


@pytest.mark.parametrize("window", [2, 3, 4, 5, 7, 8, 14, 15, 16, 31, 32])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_greedy_images_are_those_of_one_token_at_a_time(name: str, window: int) -> None:
    one = greedy(RASTER(), 3, name)
    ours = images(Jacobi(RASTER(), window), rows=3, sampling=SAMPLINGS[name])
    assert torch.equal(ours.ids, one.ids) and ours.turns <= one.turns


@TOGETHER
@GUESSES
@pytest.mark.parametrize("window", [3, 9])
def test_greedy_images_do_not_depend_on_first_guesses(
    guess: str, together: bool, window: int
) -> None:
    one = greedy(RASTER(), 3, "ending")
    decoding = Jacobi(RASTER(), window, guess, together=together)
    ours = images(decoding, rows=3, sampling=SAMPLINGS["ending"])
    assert torch.equal(ours.ids, one.ids) and ours.turns <= one.turns


@KINDS
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_greedy_batches_of_any_size_are_those_of_one_at_a_time(rows: int, kind: CacheKind) -> None:
    one = greedy(RASTER(), rows, "ramp")
    ours = images(Jacobi(RASTER(), 6, "left", kind=kind), rows=rows, sampling=SAMPLINGS["ramp"])
    assert torch.equal(ours.ids, one.ids)


@pytest.mark.parametrize(("kind", "together"), [(Static, False), (Dense, True)])
@pytest.mark.parametrize("window", range(1, len(LADDER) + 2))
@pytest.mark.parametrize("name", ["plain", "ramp"])
def test_greedy_images_are_those_of_one_scale_at_a_time(
    name: str, window: int, together: bool, kind: CacheKind
) -> None:
    one = greedy(VAR(), 3, name)
    decoding = Jacobi(VAR(), window, together=together, kind=kind)
    ours = images(decoding, rows=3, sampling=SAMPLINGS[name])
    assert torch.equal(ours.ids, one.ids) and ours.turns <= one.turns


@pytest.mark.parametrize("ends", [0, 1, 2, 3])
def test_guidance_may_end_within_a_window_of_scales(ends: int) -> None:
    sampling = Sampling(guidance=(3.0, 2.0), guided_groups=ends)
    one = images(Sequential(VAR()), sampling=sampling)
    assert torch.equal(images(Jacobi(VAR(), 3), sampling=sampling).ids, one.ids)


def test_a_window_of_one_decides_one_group_a_turn() -> None:
    ours = images(Jacobi(RASTER(), 1), Rng.batch(0, 3), rows=3)
    assert ours.turns == len(RASTER().schedule)


@GUESSES
@pytest.mark.parametrize("rng", [None, 0])
def test_easy_images_take_few_turns(guess: str, rng: int | None) -> None:
    model = easy(5)
    streams = None if rng is None else Rng.batch(rng, 4)
    turns = images(Jacobi(model, 8, guess), streams, rows=4, sampling=Sampling(1.0)).turns
    assert turns <= (12 if rng is None else 16)  # of 25 one by one


def test_to_wait_for_each_other_takes_more_turns() -> None:
    alone, waiting = (
        images(Jacobi(easy(5), 8, together=together), Rng.batch(0, 8), rows=8).turns
        for together in (False, True)
    )
    assert alone < waiting < 25


def test_the_speculative_test_takes_fewer_turns_than_that_of_sameness() -> None:
    model, turns = easy(5), dict[str, int]()
    for test in ("speculative", "match"):
        decoding = Jacobi(model, 8, test=test)
        each = [images(decoding, Rng([seed]), rows=1).turns for seed in range(5)]
        turns[test] = sum(each)
        assert max(each) <= 25
    assert turns["speculative"] < 0.9 * turns["match"]


@pytest.mark.parametrize(
    ("guess", "test"), [*((guess, "speculative") for guess in GUESSERS), ("random", "match")]
)
def test_an_image_alone_is_that_among_others(guess: str, test: str) -> None:
    decoding, sampling = Jacobi(RASTER(), 4, guess, test), Sampling(1.5, top_k=6)

    def batch(seeds: list[int], labels: list[int]) -> Tensor:
        made = images(decoding, Rng(seeds), rows=len(seeds), sampling=sampling, labels=labels)
        return made.ids

    alone = batch([3], [2])
    assert torch.equal(batch([0, 1, 3, 2], [0, 1, 2, -1])[2:3], alone)
    assert torch.equal(batch([3, 17], [2, 4])[:1], alone)
    assert not torch.equal(batch([4], [2]), alone)
    assert torch.equal(batch([3], [2]), alone), "whatever was decided before"


def test_scales_of_an_image_alone_are_those_among_others() -> None:
    decoding, sampling = Jacobi(VAR(), 3), Sampling(1.5, top_k=6)
    alone = images(decoding, Rng([5]), rows=1, sampling=sampling, labels=[1]).ids
    among = images(decoding, Rng([8, 5, 9]), rows=3, sampling=sampling, labels=[0, 1, 3]).ids
    assert torch.equal(among[1:2], alone)


@TOGETHER
def test_a_decoding_may_serve_other_batches_and_caches(together: bool) -> None:
    def fresh() -> Jacobi:
        return Jacobi(RASTER(), 5, together=together)

    used, sampling = fresh(), SAMPLINGS["guided"]
    cases = [(3, Static), (2, None), (5, Dense), (1, None)]
    for rows, kind in cases:
        seeds = Rng.batch(7, rows), Rng.batch(7, rows)
        ours = images(used, seeds[0], rows=rows, sampling=sampling, cache=kind)
        theirs = images(fresh(), seeds[1], rows=rows, sampling=sampling, cache=kind)
        assert torch.equal(ours.ids, theirs.ids) and ours.turns == theirs.turns
    assert isinstance(used.caches[0], Dense), "the kind that was asked for last"


def test_a_run_cut_short_leaves_nothing_behind() -> None:
    decoding, model = Jacobi(RASTER(), 5), RASTER()
    fresh = images(decoding, Rng.batch(0, 2)).ids
    run = decide(
        tiny.flat(), model.schedule, Condition(torch.tensor([3, 4, 1])), decoding, Sampling(2.0),
        Rng.batch(9, 3),
    )  # fmt: skip
    next(run), next(run)
    run.close()
    assert torch.equal(images(decoding, Rng.batch(0, 2)).ids, fresh)


@GUESSES
@pytest.mark.parametrize("begun", [1, 4, 14])
def test_a_run_can_go_on_from_a_canvas(begun: int, guess: str) -> None:
    one = greedy(RASTER(), 3, "ramp")
    canvas = tiny.flat().blank(3, RASTER().schedule).write(*one.ids[:, :begun].split(1, dim=1))
    ours = images(Jacobi(RASTER(), 4, guess), rows=3, sampling=SAMPLINGS["ramp"], canvas=canvas)
    assert torch.equal(ours.ids, one.ids[:, begun:]) and ours.turns <= 15 - begun
    seeded = images(Jacobi(RASTER(), 4, guess), Rng.batch(0, 3), rows=3, canvas=canvas).canvas
    assert torch.equal(seeded.ids[:, :begun], one.ids[:, :begun])
    assert seeded.done == 15


def test_a_run_over_scales_can_go_on_from_a_canvas() -> None:
    one = greedy(VAR(), 3, "ramp")
    schedule = VAR().schedule
    parts = one.ids.split(schedule.sizes, dim=1)
    canvas = tiny.tokenizer(len(LADDER)).blank(3, schedule).write(*parts[:2])
    ours = images(Jacobi(VAR(), 2), rows=3, sampling=SAMPLINGS["ramp"], canvas=canvas)
    assert torch.equal(ours.ids, torch.cat(parts[2:], dim=1))


def kept(model: Any, made: Any, rows: int = 3) -> tuple[Kept, list[Tensor], list[Tensor]]:
    """Return a canvas on which some cells of some rows stay, what they are, and which."""
    schedule, rng = model.schedule, torch.Generator().manual_seed(4)
    source = [tiny.ids(rows, size, seed=k) for k, size in enumerate(schedule.sizes)]
    keep = [torch.rand(rows, size, generator=rng) < 0.4 for size in schedule.sizes]
    return Kept(made.blank(rows, schedule), source, keep), source, keep


@pytest.mark.parametrize("rng", [None, 3])
@pytest.mark.parametrize(
    ("model", "made"),
    [(RASTER, tiny.flat), (VAR, lambda: tiny.tokenizer(len(LADDER)))],
    ids=["raster", "var"],
)
def test_what_is_kept_of_an_image_stays_and_is_seen(
    model: Callable[[], Any], made: Callable[[], Any], rng: int | None
) -> None:
    canvas, source, keep = kept(model(), made())
    sampling = SAMPLINGS["guided"]
    ours, theirs = (
        images(
            decoding,
            None if rng is None else Rng.batch(rng, 3),
            rows=3,
            sampling=sampling,
            canvas=canvas,
        )
        for decoding in (Jacobi(model(), 3), Sequential(model()))
    )
    where, given = torch.cat(keep, dim=1), torch.cat(source, dim=1)
    written = torch.where(where, given, ours.ids)
    parts = written.split(model().schedule.sizes, dim=1)
    tiny.same(ours.canvas.latent, made().blank(3, model().schedule).write(*parts).latent)
    if rng is None:
        assert torch.equal(written, torch.where(where, given, theirs.ids))


@pytest.mark.parametrize("rng", [None, 0])
@GUESSES
def test_to_read_more_than_need_be_changes_nothing(
    guess: str, rng: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Images:
        streams = None if rng is None else Rng.batch(rng, 4)
        return images(Jacobi(RASTER(), 4, guess), streams, rows=4, sampling=SAMPLINGS["guided"])

    def rounded(state: State) -> Span:
        length = -(-(state.ahead + state.slots) // 8) * 8
        return state.schedule[state.done : min(len(state.schedule), state.done + length)]

    exact = run()
    monkeypatch.setattr(State, "span", property(rounded))
    ours = run()
    assert torch.equal(ours.ids, exact.ids) and ours.turns == exact.turns


def test_each_turn_decides_a_group_at_least_and_a_window_at_most() -> None:
    model, decoding = easy(5), Jacobi(easy(5), 6)
    canvases = decide(
        tiny.flat(), model.schedule, Condition(torch.tensor([1])), decoding, Sampling(1.0),
        Rng([2]),
    )  # fmt: skip
    done = [0, *(canvas.done for canvas in canvases)]
    steps = [b - a for a, b in zip(done, done[1:], strict=False)]
    assert min(steps) >= 1 and max(steps) == 6 and done[-1] == 25


@tiny.rewinding
def test_families_that_decide_codes_can_be_decided_so(family: Family) -> None:
    if not hasattr(family.model().head, "vocabulary"):
        return
    sampling = replace(family.guided, smooth=False)
    condition = family.condition(torch.tensor([0, 2]))
    one, ours = (
        list(decide(family.tokenizer(), family.schedule, condition, decoding, sampling))[-1]
        for decoding in (Sequential(family.model()), Jacobi(family.model(), 3))
    )
    tiny.same(ours.latent, one.latent)


def test_first_guesses_go_on_from_what_an_image_begins_with() -> None:
    model, tokenizer = RASTER(), tiny.tokenizer()
    canvas = Chain.blank(2, model.schedule, tokenizer.embed, torch.device("cpu"))
    canvas = canvas.write(*torch.full((2, 6), 7).split(1, dim=1))
    draft = Jacobi(model, 4, "left").propose(canvas, None).draft
    assert draft.ids[:, 6:].tolist() == [[7, 7, 7]] * 2
