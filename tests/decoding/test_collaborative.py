"""Collaborative decoding: twins are one model, prefill is reading step by step, memory is freed."""

import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family, close, same
from var.cache.base import CacheKind, nbytes
from var.cache.dense import Dense
from var.cache.static import Static
from var.condition import Condition
from var.decoding.base import Decoding
from var.decoding.collaborative import Collaborative
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.random import Rng
from var.sampling import Sampling
from var.tokenizers.canvas import Kept
from var.tokenizers.tokenizer import Canvas

VAR = tiny.FAMILIES["var"]
KINDS = pytest.mark.parametrize("kind", [Dense, Static])


def run(
    family: Family,
    decoding: Decoding,
    sampling: Sampling,
    rng: Rng | None = None,
    rows: int = 2,
    kind: CacheKind | None = None,
    canvas: Canvas | None = None,
) -> Iterator[Canvas]:
    condition, tokenizer = Condition(torch.arange(rows) - 1), family.tokenizer()
    return decide(
        tokenizer, family.schedule, condition, decoding, sampling, rng, canvas=canvas, cache=kind
    )


def latent(*args: object, **options: object) -> Tensor:
    *_, canvas = run(*args, **options)
    return canvas.latent


def pair(family: Family, switch: int = 2, kind: CacheKind | None = None) -> Collaborative:
    """Return the decoding of a larger and a smaller model."""
    return Collaborative(family.model(**family.larger), family.model(), switch, kind)


@KINDS
@pytest.mark.parametrize("switch", [1, 2, 3])
@tiny.samplings
def test_twins_decide_what_one_of_them_decides_alone(
    family: Family, sampling: Sampling, kind: CacheKind, switch: int
) -> None:
    model = family.model()
    twins = Collaborative(model, model, switch, kind)
    alone = latent(family, Sequential(model, kind), sampling, Rng.batch(0, 3), rows=3)
    same(latent(family, twins, sampling, Rng.batch(0, 3), rows=3), alone)


@KINDS
@tiny.families
def test_the_closers_prefill_remembers_what_reading_step_by_step_does(
    family: Family, kind: CacheKind
) -> None:
    decoding = pair(family, switch=2, kind=kind)
    turns = run(family, decoding, family.plain, rows=2)
    *_, canvas = (next(turns) for _ in range(3))  # before the last one: nobody reads on after it
    steps = decoding.closer.new_cache(kind)
    condition, schedule = Condition(torch.arange(2) - 1), family.schedule
    with torch.no_grad():
        for span in (schedule[k : k + 1] for k in range(3)):
            decoding.closer(canvas.read(span), span, condition, steps)
            steps.advance(span)
    _, prefilled = decoding.caches
    assert prefilled.seen == steps.seen == 3
    for ours, theirs in zip(prefilled.layers, steps.layers, strict=True):
        assert len(ours.tensors())
        for a, b in zip(ours.tensors(), theirs.tensors(), strict=True):
            close(a, b)


@tiny.families
def test_each_model_decides_its_groups(family: Family) -> None:
    decoding, sampling = pair(family, switch=2), family.plain
    opened = list(run(family, Sequential(decoding.opener), sampling))
    both = list(run(family, decoding, sampling))
    assert torch.equal(both[1].latent, opened[1].latent)
    assert not torch.allclose(both[2].latent, opened[2].latent, atol=1e-3)
    closed = latent(family, Sequential(decoding.closer), sampling, canvas=opened[1])
    assert torch.equal(both[-1].latent, closed)


@KINDS
@tiny.families
def test_the_openers_memory_is_free_before_the_closer_reads(
    family: Family, kind: CacheKind
) -> None:
    decoding = pair(family, switch=2, kind=kind)
    held: list[int] = []
    decoding.closer.register_forward_pre_hook(lambda *_: held.append(nbytes(decoding.caches[0])))
    turns = run(family, decoding, family.guided)
    next(turns)
    opening, closing = decoding.caches
    assert nbytes(opening) and not nbytes(closing)
    next(turns)
    keys = [weakref.ref(t) for memory in opening.layers for t in memory.tensors()]
    next(turns)
    assert held == [0] and nbytes(closing)
    assert not any(key() for key in keys)


@tiny.families
def test_a_static_opener_has_room_for_its_own_groups_only(family: Family) -> None:
    decoding = pair(family, switch=2, kind=Static)
    turns = run(family, decoding, family.plain)
    next(turns)
    width = family.larger["width"]
    assert nbytes(decoding.caches[0]) == family.held(2, 2, layers=3, width=width)


def test_a_new_run_begins_with_no_memory_at_all() -> None:
    decoding = pair(VAR)
    list(run(VAR, decoding, VAR.plain))
    assert nbytes(*decoding.caches)
    decoding.begin()
    assert not nbytes(*decoding.caches)


@tiny.families
def test_other_rows_and_another_kind_of_cache_may_follow(family: Family) -> None:
    decoding, sampling = pair(family), family.guided
    first = latent(family, decoding, sampling, Rng.batch(0, 2))
    assert latent(family, decoding, sampling, Rng.batch(0, 3), rows=3).shape[0] == 3
    again = latent(family, decoding, sampling, Rng.batch(0, 2), kind=Dense)
    same(again, first)
    assert all(isinstance(cache, Dense) for cache in decoding.caches)


@tiny.families
def test_a_run_cut_short_leaves_nothing_behind(family: Family) -> None:
    decoding, sampling = pair(family, switch=3), family.plain
    turns = run(family, decoding, sampling)
    next(turns), next(turns)
    fresh = latent(family, pair(family, switch=3), sampling)
    assert torch.equal(latent(family, decoding, sampling), fresh)


@pytest.mark.parametrize("switch", [-1, 0, 4, 9])
def test_a_switch_that_leaves_a_model_without_work_is_refused(switch: int) -> None:
    model = tiny.model()
    with pytest.raises(UserError, match=rf"switch={switch} leaves .* 4 groups .* after 1\.\.3"):
        next(run(VAR, Collaborative(model, model, switch), Sampling()))


@tiny.families
def test_settings_of_each_group_reach_the_model_whose_group_it_is(family: Family) -> None:
    cold = 1e-6  # as good as none
    temperature = (cold, 1.0, cold, *[1.0] * (len(family.schedule) - 3))
    sampling = replace(family.plain, temperature=temperature)
    seeded = [list(run(family, pair(family), sampling, Rng.batch(s, 2))) for s in (0, 50)]
    greedy = list(run(family, pair(family), family.plain))
    same(seeded[0][0].latent, greedy[0].latent)
    assert not torch.allclose(seeded[0][1].latent, seeded[1][1].latent, atol=1e-3)
    # From one canvas on, the closer's first group is greedy, its second one is not.
    rest = [
        list(run(family, pair(family), sampling, Rng.batch(s, 2), canvas=seeded[0][1]))
        for s in (0, 50)
    ]
    same(rest[0][0].latent, rest[1][0].latent)
    assert not torch.allclose(rest[0][-1].latent, rest[1][-1].latent, atol=1e-3)


@tiny.families
def test_what_is_kept_of_an_image_stays_through_the_switch(family: Family) -> None:
    schedule = family.schedule
    source = [family.tokens(2, size) for size in schedule.sizes]
    keep = [torch.ones(size, dtype=torch.bool) for size in schedule.sizes]
    blank = family.tokenizer().blank(2, schedule)
    canvas, rng = Kept(blank, source, keep), Rng.batch(0, 2)
    kept = latent(family, pair(family), family.plain, rng, canvas=canvas)
    assert torch.equal(kept, blank.write(*source).latent)


@tiny.families
def test_models_of_other_schedules_are_refused(family: Family) -> None:
    other = family.model(**family.elsewhere)
    with pytest.raises(ValueError, match="built for the schedule"):
        list(run(family, Collaborative(family.model(), other, 2), family.plain))
