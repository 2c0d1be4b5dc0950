"""The compressed cache: dense at full budget, as long as the budget says, and nothing besides."""

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family, close, same
from var.cache.base import CacheKind, nbytes
from var.cache.dense import Dense
from var.cache.scale import Scale
from var.cache.scale_budget import Budget
from var.condition import Condition
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.random import Rng
from var.schedule import Schedule

LADDER = (1, 2, 4, (4, 6), 7)
SCHEDULE = Schedule.scales(LADDER)
LAYERS = 2
TIGHT = Budget(SCHEDULE, ((0, 0), (1, 1), (5, 3), (21, 16), (18, 20)))
LABELS = [0, 1, 2, 3, 4, -1, 1, 0]
VAR = tiny.FAMILIES["var"]


def scale(budget: Budget = TIGHT, groups: int | None = None) -> Scale:
    return Scale(budget.layers, groups, budget=budget)


def kind(budget: Budget = TIGHT, **settings: object) -> CacheKind:
    return lambda layers, groups: Scale(layers, groups, budget=budget, **settings)  # type: ignore[arg-type]


class Listening(Sequential):
    """Sequential decoding that notes what was drawn."""

    def settle(self, *args: object) -> list[Tensor]:
        drawn = super().settle(*args)  # type: ignore[arg-type]
        self.tokens = [*getattr(self, "tokens", []), *drawn]
        return drawn


def drawn(
    cache: CacheKind, labels: list[int] = LABELS, seed: int = 10, family: Family = VAR
) -> list[Tensor]:
    """Return the tokens of guided images, group by group."""
    decoding, seeds = Listening(family.model(ladder=LADDER), cache), Rng.batch(seed, len(labels))
    condition, tokenizer = Condition(torch.tensor(labels)), family.tokenizer(len(LADDER))
    list(decide(tokenizer, SCHEDULE, condition, decoding, family.guided, seeds))
    return decoding.tokens


def parts(rows: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return q, k and v, (3, R, N, L, d)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(3, rows, 2, length, 4, generator=rng).to(dtype)


def read(cache: Scale, start: int, stop: int, **kwargs: object) -> tuple[Tensor, Tensor]:
    """Let every layer read the same; return what the last one attends to."""
    span = cache.layers[0]._schedule[start:stop]  # type: ignore[attr-defined]
    q, k, v = parts(3, len(span), seed=start, **kwargs)  # type: ignore[arg-type]
    seen = [memory.extend(q, k, v, span) for memory in cache.layers]
    cache.advance(span)
    return seen[-1]


def held(cache: Scale) -> list[int]:
    return [memory.tensors()[0].shape[2] if memory.tensors() else 0 for memory in cache.layers]


@pytest.mark.parametrize("score", ["logits", "weights"])
@tiny.compressible
def test_a_full_budget_gives_the_tokens_of_a_dense_cache(family: Family, score: str) -> None:
    full = Budget.shared(SCHEDULE, LAYERS, 1.0)
    same(drawn(kind(full, score=score), family=family), drawn(Dense, family=family))


@tiny.compressible
def test_a_tight_budget_changes_what_is_drawn(family: Family) -> None:
    ours, theirs = drawn(kind(), family=family), drawn(Dense, family=family)
    same(ours[:2], theirs[:2])
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pool", ["max", "mean"])
@tiny.compressible
def test_every_image_alone_is_the_image_in_a_batch_of_eight(family: Family, pool: str) -> None:
    together = drawn(kind(pool=pool), family=family)
    for i, label in enumerate(LABELS):
        alone = drawn(kind(pool=pool), [label], seed=10 + i, family=family)
        same([group[i : i + 1] for group in together], alone)


@tiny.compressible
def test_the_same_seed_makes_the_same_image(family: Family) -> None:
    first, again, other = (drawn(kind(), seed=seed, family=family) for seed in (10, 10, 11))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[1:], other[1:], strict=True))


def test_lengths_are_those_of_the_budget_at_every_group_and_layer() -> None:
    cache = scale()
    for group, size in enumerate(SCHEDULE.sizes):
        before = held(cache)
        assert before == list(TIGHT.capacities[group])
        keys, values = read(cache, group, group + 1)
        assert keys.shape[2] == values.shape[2] == before[-1] + size
    assert held(cache) == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_capacities(dtype: torch.dtype) -> None:
    cache = scale()
    for group in range(len(SCHEDULE) - 1):
        read(cache, group, group + 1, dtype=dtype)
        positions = sum(TIGHT.capacities[group + 1])
        assert nbytes(cache) == 2 * 3 * 2 * 4 * positions * dtype.itemsize
        assert all(t.dtype == dtype for memory in cache.layers for t in memory.tensors())


def test_views_of_larger_tensors_are_not_kept_alive() -> None:
    cache, model = scale(), VAR.model(ladder=LADDER)
    with torch.no_grad():
        model(tiny.vectors(3, 1), SCHEDULE[:1], Condition(torch.zeros(3).long()), cache)
    assert nbytes(cache) == LAYERS * 2 * 3 * 32 * 4


def test_all_of_the_span_is_attended_to_after_what_was_kept() -> None:
    cache = scale()
    for group in range(3):
        read(cache, group, group + 1)
    kept = cache.layers[-1].tensors()
    keys, values = read(cache, 3, 4)
    _, k, v = parts(3, 24, seed=3)
    for all_, old, new in zip((keys, values), kept, (k, v), strict=True):
        assert torch.equal(all_, torch.cat([old, new], dim=2))


def test_what_is_kept_are_positions_read_in_order_the_window_among_them() -> None:
    cache = scale()
    read(cache, 0, 3)
    _, k, v = parts(3, 21)
    keys, values = cache.layers[1].tensors()
    index = (keys[:, :, :, None] == k[:, :, None]).all(-1).long().argmax(-1)
    assert (index.diff() > 0).all()
    assert torch.equal(index, torch.arange(5, 21).expand(3, 2, 16)), "16 places, 16 observers"
    assert torch.equal(values, v[:, :, 5:])


def test_several_groups_may_be_read_at_once_and_are_then_compressed_once() -> None:
    cache = scale()
    keys, _ = read(cache, 0, 4)
    assert keys.shape[2] == 45 and held(cache) == [18, 20]
    keys, _ = read(cache, 4, 5)
    assert keys.shape[2] == 20 + 49


def test_queries_of_the_last_group_decide_however_many_were_read() -> None:
    schedule = Schedule.scales([4, (2, 3), 5])  # too small for patches: the latest 16 observe
    budget, (q, k, v) = Budget(schedule, ((0,), (16,), (18,))), parts(3, 22)
    other = torch.cat([-q[:, :, :16], q[:, :, 16:]], dim=2)
    found = []
    for queries in (q, other):
        cache = Scale(1, budget=budget)
        cache.layers[0].extend(queries, k, v, schedule[:2])
        found.append(cache.layers[0].tensors()[0])
    assert found[0].shape[2] == 18 and torch.equal(*found)


@tiny.compressible
def test_a_prefill_sees_what_teacher_forcing_sees(family: Family) -> None:
    model, x = family.model(ladder=LADDER), tiny.vectors(2, 45)
    condition, span = Condition(torch.tensor([1, -1])), SCHEDULE[:4]
    with torch.no_grad():
        close(model(x, span, condition, model.new_cache(kind())), model(x, span, condition))


def test_nothing_is_kept_after_the_last_group_that_will_be_read() -> None:
    cache = scale(groups=3)
    read(cache, 0, 2)
    assert held(cache) == [5, 3]
    read(cache, 2, 3)
    assert held(cache) == [0, 0] and nbytes(cache) == 0


def test_a_layer_without_room_reads_the_current_group_alone() -> None:
    cache = Scale(1, budget=Budget(SCHEDULE, ((0,), (0,), (2,), (0,), (0,))))
    for group, length in enumerate([1, 4, 2 + 16, 24, 49]):
        keys, _ = read(cache, group, group + 1)
        assert keys.shape[2] == length


@tiny.compressible
def test_rewound_to_0_it_serves_another_batch_and_condition(family: Family) -> None:
    decoding = Listening(family.model(ladder=LADDER), kind())
    tokenizer, sampling = family.tokenizer(len(LADDER)), family.guided
    for labels in ([3, 4, 2], [0, 1]):
        decoding.tokens = []
        condition, rng = Condition(torch.tensor(labels)), Rng.batch(10, len(labels))
        list(decide(tokenizer, SCHEDULE, condition, decoding, sampling, rng))
    same(decoding.tokens, drawn(kind(), [0, 1], family=family))


def test_single_groups_cannot_be_forgotten() -> None:
    cache = scale()
    read(cache, 0, 3)
    cache.rewind(3)
    cache.rewind(4)
    assert cache.seen == 3 and not cache.rewinds
    with pytest.raises(ValueError, match="has read 3 groups cannot go back to 2: rewind it to 0"):
        cache.rewind(2)
    memory = cache.layers[0]
    memory.rewind(21)
    with pytest.raises(ValueError, match="has read 21 positions cannot go back to 5"):
        memory.rewind(5)
    cache.rewind(0)
    assert cache.seen == 0 and held(cache) == [0, 0]


def test_groups_can_be_divided_as_other_grids_than_they_have() -> None:
    schedule, (q, k, v) = Schedule.scales([(2, 8), 1]), parts(3, 16)
    budget, kept = Budget(schedule, ((0,), (4,))), []
    for grids in (None, [(4, 4), None], [None, None]):
        cache = Scale(1, budget=budget, window=4, grids=grids)
        cache.layers[0].extend(q, k, v, schedule[:1])
        kept.append(cache.layers[0].tensors()[0])
    for found, cells in zip(kept, ([1, 5, 9, 13], [0, 2, 8, 10], [12, 13, 14, 15]), strict=True):
        assert torch.equal(found, k[:, :, cells])


def test_a_budget_for_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="budget is for 2 layers, the model has 3"):
        Scale(3, budget=TIGHT)
    other = Schedule.scales([1, 2])
    q, k, v = parts(1, 1)
    with pytest.raises(ValueError, match="the budget is for the ladder"):
        scale().layers[0].extend(q, k, v, other[:1])


@pytest.mark.gpu
def test_the_host_never_waits_for_the_device() -> None:
    cache = scale()
    groups = [parts(3, size, seed=g).cuda() for g, size in enumerate(SCHEDULE.sizes)]
    for turn in range(2):  # window positions go to the device in the first
        cache.rewind(0)
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            for group, (q, k, v) in enumerate(groups):
                for memory in cache.layers:
                    memory.extend(q, k, v, SCHEDULE[group : group + 1])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_half_precision_is_scored_in_full() -> None:
    cache, rough = scale(), scale()
    for group in range(4):
        span = SCHEDULE[group : group + 1]
        q, k, v = parts(3, len(span), seed=group, dtype=torch.bfloat16)
        for memory in rough.layers:
            memory.extend(q, k, v, span)
        for memory in cache.layers:
            memory.extend(q.float(), k.float(), v.float(), span)
    for a, b in zip(cache.layers, rough.layers, strict=True):
        for x, y in zip(a.tensors(), b.tensors(), strict=True):
            assert torch.equal(x, y.float())
