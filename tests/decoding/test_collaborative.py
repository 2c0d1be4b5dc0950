"""Collaborative decoding: twins are one model, prefill is reading step by step, memory is freed."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.cache.base import CacheKind, nbytes
from var.cache.dense import Dense
from var.cache.static import Static
from var.decoding.base import Decoding
from var.decoding.collaborative import Collaborative
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.models.var import VAR
from var.random import Rng
from var.sampling import Condition, Sampling
from var.tokenizers.canvas import Kept
from var.tokenizers.tokenizer import Canvas

SCHEDULE = tiny.SCHEDULE
KINDS = pytest.mark.parametrize("kind", [Dense, Static])


def run(
    decoding: Decoding,
    sampling: Sampling,
    rng: Rng | None = None,
    rows: int = 2,
    kind: CacheKind | None = None,
    canvas: Canvas | None = None,
) -> Iterator[Canvas]:
    condition = Condition(torch.arange(rows) - 1)
    return decide(
        tiny.tokenizer(), SCHEDULE, condition, decoding, sampling, rng, canvas=canvas, cache=kind
    )


def latent(*args: object, **options: object) -> Tensor:
    *_, canvas = run(*args, **options)
    return canvas.latent


def pair(switch: int = 2, kind: CacheKind | None = None) -> Collaborative:
    """Return the decoding of a larger and a smaller model."""
    return Collaborative(tiny.model(depth=3, width=48), tiny.model(), switch, kind)


@KINDS
@pytest.mark.parametrize("switch", [1, 2, 3])
@pytest.mark.parametrize("sampling", [Sampling(top_k=9), Sampling(guidance=2.0, top_p=0.9)])
def test_twins_decide_what_one_of_them_decides_alone(
    kind: CacheKind, switch: int, sampling: Sampling
) -> None:
    model = tiny.model()
    twins = Collaborative(model, model, switch, kind)
    alone = latent(Sequential(model, kind), sampling, Rng.batch(0, 3), rows=3)
    assert torch.equal(latent(twins, sampling, Rng.batch(0, 3), rows=3), alone)


@KINDS
def test_the_closers_prefill_remembers_what_reading_step_by_step_does(kind: CacheKind) -> None:
    decoding = pair(switch=3, kind=kind)
    *_, canvas = run(decoding, Sampling(), rows=2)
    steps = decoding.closer.new_cache(kind)
    condition = Condition(torch.arange(2) - 1)
    with torch.no_grad():
        for span in (SCHEDULE[k : k + 1] for k in range(len(SCHEDULE))):
            decoding.closer(canvas.read(span), span, condition, steps)
            steps.advance(span)
    _, prefilled = decoding.caches
    assert prefilled.seen == steps.seen == len(SCHEDULE)
    for ours, theirs in zip(prefilled.layers, steps.layers, strict=True):
        assert len(ours.tensors())
        for a, b in zip(ours.tensors(), theirs.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_model_decides_its_groups() -> None:
    decoding = pair(switch=2)
    opened = list(run(Sequential(decoding.opener), Sampling()))
    both = list(run(decoding, Sampling()))
    assert torch.equal(both[1].latent, opened[1].latent)
    assert not torch.equal(both[2].latent, opened[2].latent)
    closed = latent(Sequential(decoding.closer), Sampling(), canvas=opened[1])
    assert torch.equal(both[3].latent, closed)


@KINDS
def test_the_openers_memory_is_free_before_the_closer_reads(kind: CacheKind) -> None:
    decoding = pair(switch=2, kind=kind)
    held: list[int] = []
    decoding.closer.register_forward_pre_hook(lambda *_: held.append(nbytes(decoding.caches[0])))
    turns = run(decoding, Sampling(guidance=1.0))
    next(turns), next(turns)
    opening, closing = decoding.caches
    assert nbytes(opening) and not nbytes(closing)
    keys = [weakref.ref(t) for memory in opening.layers for t in memory.tensors()]
    next(turns)
    assert held == [0] and nbytes(closing)
    assert not any(key() for key in keys)


def test_a_static_opener_has_room_for_its_own_groups_only() -> None:
    decoding = pair(switch=2, kind=Static)
    turns = run(decoding, Sampling())
    next(turns)
    positions = SCHEDULE.starts[2]
    assert nbytes(decoding.caches[0]) == 3 * 2 * 2 * positions * 48 * 4  # layers, k and v, rows


def test_a_new_run_begins_with_no_memory_at_all() -> None:
    decoding = pair()
    list(run(decoding, Sampling()))
    assert nbytes(*decoding.caches)
    decoding.begin()
    assert not nbytes(*decoding.caches)


def test_other_rows_and_another_kind_of_cache_may_follow() -> None:
    decoding, sampling = pair(), Sampling(guidance=2.0)
    first = latent(decoding, sampling, Rng.batch(0, 2))
    assert latent(decoding, sampling, Rng.batch(0, 3), rows=3).shape[0] == 3
    again = latent(decoding, sampling, Rng.batch(0, 2), kind=Dense)
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-5)
    assert all(isinstance(cache, Dense) for cache in decoding.caches)


def test_a_run_cut_short_leaves_nothing_behind() -> None:
    decoding = pair(switch=3)
    turns = run(decoding, Sampling())
    next(turns), next(turns)
    assert torch.equal(latent(decoding, Sampling()), latent(pair(switch=3), Sampling()))


@pytest.mark.parametrize("switch", [-1, 0, 4, 9])
def test_a_switch_that_leaves_a_model_without_work_is_refused(switch: int) -> None:
    model = tiny.model()
    with pytest.raises(UserError, match=rf"switch={switch} leaves .* 4 groups .* after 1\.\.3"):
        next(run(Collaborative(model, model, switch), Sampling()))


def test_settings_of_each_group_reach_the_model_whose_group_it_is() -> None:
    sampling = Sampling(top_k=(1, 0, 1, 0))
    seeded = [list(run(pair(), sampling, Rng.batch(seed, 2))) for seed in (0, 50)]
    greedy = list(run(pair(), Sampling()))
    assert torch.equal(seeded[0][0].latent, greedy[0].latent)
    assert not torch.equal(seeded[0][1].latent, seeded[1][1].latent)
    # From one canvas on, the closer's first group is greedy, its second one is not.
    rest = [list(run(pair(), sampling, Rng.batch(s, 2), canvas=seeded[0][1])) for s in (0, 50)]
    assert torch.equal(rest[0][0].latent, rest[1][0].latent)
    assert not torch.equal(rest[0][1].latent, rest[1][1].latent)


def test_what_is_kept_of_an_image_stays_through_the_switch() -> None:
    source = [torch.full((2, size), 7) for size in SCHEDULE.sizes]
    keep = [torch.ones(size, dtype=torch.bool) for size in SCHEDULE.sizes]
    blank = tiny.tokenizer().blank(2, SCHEDULE)
    kept = latent(pair(), Sampling(), Rng.batch(0, 2), canvas=Kept(blank, source, keep))
    assert torch.equal(kept, blank.write(*source).latent)


def test_models_of_other_ladders_are_refused() -> None:
    other: VAR = tiny.model(ladder=(1, 2, 4))
    with pytest.raises(ValueError, match="built for the ladder"):
        list(run(Collaborative(tiny.model(), other, 2), Sampling()))
