from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family, close
from var.cache.base import Cache, CacheKind, nbytes
from var.cache.dense import Dense
from var.cache.static import Static
from var.condition import Condition
from var.schedule import Schedule, Span

VAR = tiny.FAMILIES["var"]
KINDS = pytest.mark.parametrize("kind", [Dense, Static])


def inputs(family: Family, schedule: Schedule, rows: int = 3) -> tuple[Tensor, Condition]:
    x = family.shown(rows, schedule.starts[-1], seed=2)
    return x, family.condition(torch.arange(rows) - 1)


def others(x: Tensor) -> Tensor:
    """Return other things that a canvas might show."""
    return -x if x.is_floating_point() else (x + 1) % tiny.VOCABULARY


@torch.no_grad()
def read(model: Any, x: Tensor, condition: Condition, cache: Cache, *spans: Span) -> list[Tensor]:
    """Let the model read spans one after the other."""
    features = []
    for span in spans:
        features.append(model(x[:, span.positions], span, condition, cache))
        cache.advance(span)
    return features


def one_by_one(schedule: Schedule, start: int = 0) -> list[Span]:
    return [schedule[k : k + 1] for k in range(start, len(schedule))]


@KINDS
@tiny.variants
def test_cached_equals_uncached(family: Family, kind: CacheKind) -> None:
    model = family.model()
    schedule = model.schedule
    x, condition = inputs(family, schedule)
    at_once = model(x, schedule[:], condition)
    steps = read(model, x, condition, model.new_cache(kind), *one_by_one(schedule))
    close(torch.cat(steps, dim=1), at_once)


@KINDS
@pytest.mark.parametrize("cuts", [(2,), (1, 3), (3, 4, 6)], ids=str)
@tiny.variants
def test_several_groups_may_be_read_at_once(
    family: Family, cuts: tuple[int, ...], kind: CacheKind
) -> None:
    model = family.model()
    schedule = model.schedule
    x, condition = inputs(family, schedule)
    at_once = model(x, schedule[:], condition)
    edges = [0, *(cut for cut in cuts if cut < len(schedule)), len(schedule)]
    spans = [schedule[start:stop] for start, stop in pairwise(edges)]
    steps = read(model, x, condition, model.new_cache(kind), *spans)
    close(torch.cat(steps, dim=1), at_once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@tiny.families
def test_static_equals_dense_in_half_precision_too(family: Family, dtype: torch.dtype) -> None:
    model = family.model().to(dtype)
    schedule = model.schedule
    x, condition = inputs(family, schedule)
    caches = [model.new_cache(kind) for kind in (Dense, Static)]
    dense, static = (read(model, x, condition, cache, *one_by_one(schedule)) for cache in caches)
    torch.testing.assert_close(dense, static)
    held = {t.dtype for cache in caches for m in cache.layers for t in m.tensors()}
    assert held == ({dtype, torch.float32} if family.recurrent else {dtype})


@KINDS
@tiny.rewinding
def test_what_was_rewound_leaves_no_trace(family: Family, kind: CacheKind) -> None:
    model = family.model()
    schedule = model.schedule
    x, condition = inputs(family, schedule)
    straight = read(model, x, condition, model.new_cache(kind), *one_by_one(schedule))
    cache = model.new_cache(kind)
    read(model, x, condition, cache, *one_by_one(schedule)[:2])
    read(model, others(x), condition, cache, schedule[2:])
    cache.rewind(2)
    assert cache.seen == 2
    again = read(model, x, condition, cache, *one_by_one(schedule, start=2))
    torch.testing.assert_close(again, straight[2:])


@KINDS
@tiny.families
def test_a_cache_rewound_to_0_serves_another_condition_and_batch(
    family: Family, kind: CacheKind
) -> None:
    model = family.model()
    schedule = model.schedule
    cache = model.new_cache(kind)
    x, condition = inputs(family, schedule, rows=2)
    read(model, x, condition, cache, schedule[:])
    cache.rewind(0)
    x, _ = inputs(family, schedule, rows=3)
    condition = Condition(torch.tensor([4, 3, 2]))
    (again,) = read(model, x, condition, cache, schedule[:])
    torch.testing.assert_close(again, model(x, schedule[:], condition).detach())


@KINDS
@tiny.families
def test_an_interrupted_first_reading_can_be_rewound(family: Family, kind: CacheKind) -> None:
    model = family.model()
    schedule = model.schedule
    cache = model.new_cache(kind)
    x, condition = inputs(family, schedule)
    with torch.no_grad():
        model(x[:, :1], schedule[:1], condition, cache)  # and no `advance`
    cache.rewind(0)
    other = Condition(torch.tensor([4, 3, 2]))
    (features,) = read(model, x, other, cache, schedule[:])
    torch.testing.assert_close(features, model(x, schedule[:], other).detach())


@KINDS
@tiny.families
def test_rewinding_forward_does_nothing(family: Family, kind: CacheKind) -> None:
    model = family.model()
    schedule = model.schedule
    cache = model.new_cache(kind)
    x, condition = inputs(family, schedule)
    read(model, x, condition, cache, schedule[:2])
    cache.rewind(2)
    cache.rewind(3)
    assert cache.seen == 2 and cache.rewinds != family.recurrent


@KINDS
def test_a_state_cannot_be_rewound_but_to_0(kind: CacheKind) -> None:
    family = tiny.FAMILIES["mvar"]
    model = family.model()
    cache = model.new_cache(kind)
    x, condition = inputs(family, model.schedule)
    straight = read(model, x, condition, cache, *one_by_one(model.schedule)[:3])
    with pytest.raises(ValueError, match="a state that sums up 3 groups cannot go back to 2"):
        cache.rewind(2)
    cache.rewind(0)
    again = read(model, x, condition, cache, *one_by_one(model.schedule)[:3])
    torch.testing.assert_close(again, straight)


@KINDS
def test_no_state_is_remembered_after_the_last_group_that_will_be_read(kind: CacheKind) -> None:
    family = tiny.FAMILIES["mvar"]
    model = family.model()
    cache = model.new_cache(kind, groups=1)
    x, condition = inputs(family, model.schedule)
    read(model, x, condition, cache, model.schedule[:1])
    assert nbytes(cache) == 0
    with pytest.raises(ValueError, match="no state of the groups before 1: .* for 1 groups"):
        read(model, x, condition, cache, model.schedule[1:2])


@KINDS
@tiny.families
def test_groups_out_of_turn_are_refused(family: Family, kind: CacheKind) -> None:
    model = family.model()
    schedule = model.schedule
    cache = model.new_cache(kind)
    x, condition = inputs(family, schedule)
    with pytest.raises(ValueError, match="starts at"):
        cache.advance(schedule[1:2])
    with pytest.raises(ValueError, match="starts at group 1, the model has read 0"):
        model(x[:, schedule[1:2].positions], schedule[1:2], condition, cache)


def test_the_static_cache_stays_where_it_is() -> None:
    model, schedule = tiny.model(), tiny.SCHEDULE
    cache = model.new_cache(Static)
    places = []
    for _ in range(2):
        cache.rewind(0)
        read(model, *inputs(VAR, schedule), cache, *one_by_one(schedule))
        k = torch.zeros(3, 4, 16, 8)
        keys, _ = cache.layers[0].extend(k, k, k, schedule[3:])
        places.append(keys.data_ptr())
    assert places[0] == places[1]


@tiny.families
def test_the_static_cache_refuses_to_lose_gradients(family: Family) -> None:
    model = family.model()
    schedule = model.schedule
    x, condition = inputs(family, schedule)
    with pytest.raises(RuntimeError, match="take Dense"):
        model(x, schedule[:], condition, model.new_cache(Static))


def test_the_static_cache_refuses_another_batch_midway() -> None:
    model, schedule = tiny.model(), tiny.SCHEDULE
    cache = model.new_cache(Static)
    x, condition = inputs(VAR, schedule)
    read(model, x, condition, cache, schedule[:2])
    memory = cache.layers[0]
    for rows in (2, 4):
        k = torch.zeros(rows, 4, 9, 8)
        with pytest.raises(ValueError, match="rows or the type"):
            memory.extend(k, k, k, schedule[2:3])


@tiny.families
def test_gradients_flow_through_the_dense_cache(family: Family) -> None:
    model, x = family.smooth()
    schedule, condition = model.schedule, family.condition(torch.tensor([0, 1]))
    cache, first = model.new_cache(Dense), schedule[:2]
    model(x[:, first.positions], first, condition, cache)
    cache.advance(first)
    model(x[:, schedule[2:3].positions], schedule[2:3], condition, cache).sum().backward()
    assert x.grad is not None and x.grad[:, schedule[1:2].positions].abs().sum() > 0


@tiny.families
def test_room_is_made_for_the_groups_that_will_be_read_only(family: Family) -> None:
    model = family.model()
    x, condition = inputs(family, model.schedule)
    whole, part = model.new_cache(Static), model.new_cache(Static, groups=3)
    for cache in (whole, part):
        read(model, x, condition, cache, *one_by_one(model.schedule)[:2])
    assert nbytes(whole) == family.held(len(x), len(model.schedule))
    assert nbytes(part) == family.held(len(x), 3)


@KINDS
@tiny.families
def test_released_memory_is_gone_and_the_cache_begins_anew(family: Family, kind: CacheKind) -> None:
    model = family.model()
    x, condition = inputs(family, model.schedule)
    cache = model.new_cache(kind)
    first = read(model, x, condition, cache, *one_by_one(model.schedule)[:-1])
    assert nbytes(cache) > 0
    cache.release()
    assert nbytes(cache) == 0 and cache.seen == 0
    condition = Condition(condition.labels[:2])
    again = read(model, x[:2], condition, cache, *one_by_one(model.schedule)[:-1])
    close(again[-1], first[-1][:2])


@tiny.families
def test_a_static_cache_stays_where_it_is_from_run_to_run(family: Family) -> None:
    model = family.model()
    x, condition = inputs(family, model.schedule)
    cache = model.new_cache(Static)
    with torch.inference_mode():
        read(model, x, condition, cache, *one_by_one(model.schedule))
    place = cache.place()
    cache.rewind(0)
    other = Condition((condition.labels + 2) % tiny.CLASSES)
    again = read(model, x, other, cache, *one_by_one(model.schedule))
    assert cache.place() == place and len(set(place)) == len(place)
    close(torch.cat(again, dim=1), model(x, model.schedule[:], other))
    assert model.new_cache(Dense).place() is None
