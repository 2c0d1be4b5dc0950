"""Calibration: the index on attention that is known, and who becomes a drafter."""

import pytest
import torch

from tests import tiny
from var.cache.dense import Dense
from var.cache.scale_selectivity import Observing, choose_drafters, factors
from var.condition import Condition
from var.schedule import Schedule

SCHEDULE = Schedule.scales([1, 2, 3])


def test_factors_are_weights_on_the_own_group_and_on_the_best_of_the_history() -> None:
    keys = torch.log(torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25]))[None, None, :, None]
    q = torch.ones(1, 1, 2, 1)
    own, best = factors(q, keys, history=3, top=2).tolist()
    assert own == pytest.approx(0.4) and best == pytest.approx(0.5)
    assert factors(q, keys, history=3, top=9)[1].item() == pytest.approx(0.6)


def test_the_index_is_the_product_of_means_over_all_that_was_read() -> None:
    cache, rng = Observing(1, top=1), torch.Generator().manual_seed(0)
    pairs = []
    for rows in (2, 1):
        cache.rewind(0)
        q, k = torch.randn(2, rows, 2, 5, 4, generator=rng)
        for span in (SCHEDULE[:1], SCHEDULE[1:2]):
            here = span.positions
            cache.layers[0].extend(q[:, :, here], k[:, :, here], k[:, :, here], span)
            cache.advance(span)
        pairs += [factors(q[i : i + 1, :, 1:], k[i : i + 1], 1, 1) for i in range(rows)]
    expected = torch.stack(pairs).mean(0).prod()
    torch.testing.assert_close(cache.index(), expected[None, None])


@tiny.compressible
def test_observing_changes_nothing(family: tiny.Family) -> None:
    model, schedule = family.model(), tiny.SCHEDULE
    x = tiny.vectors(2, schedule.starts[-1])
    condition, found = Condition(torch.tensor([0, 1])), []
    for kind in (Dense, Observing):
        cache = model.new_cache(kind)
        with torch.no_grad():
            for k in range(len(schedule)):
                span = schedule[k : k + 1]
                found.append(model(x[:, span.positions], span, condition, cache))
                cache.advance(span)
    for a, b in zip(found[:4], found[4:], strict=True):
        assert torch.equal(a, b)
    assert isinstance(cache, Observing) and cache.index().shape == (2, 3)
    assert ((cache.index() > 0) & (cache.index() <= 0.25)).all()


def test_fewer_queries_are_evenly_spaced() -> None:
    span, rng = SCHEDULE[:3], torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 14, 4, generator=rng)
    cache = Observing(1, top=2, queries=3)
    cache.layers[0].extend(q, k, k, span)
    expected = factors(q[:, :, [5, 8, 11]], k, 5, 2)
    torch.testing.assert_close(cache.index(), expected.prod()[None, None])


def test_drafters_are_the_lowest_in_comparison_with_other_layers() -> None:
    index = torch.tensor([[0.1, 0.20, 0.05], [0.1, 0.01, 0.05], [0.1, 0.20, 0.04]])
    schedule = Schedule.scales([1, 2, 3, 4])
    # Half of 14 positions: nothing is dropped before groups 1 and 2, of 1 and 5 positions.
    assert choose_drafters(index, schedule, 0.5, 0.3) == [(2, 3)]
    assert choose_drafters(index, schedule, 0.3, 0.3)[:2] == [(1, 2), (2, 3)]
    assert choose_drafters(index, schedule, 0.5, 0.0) == []
    assert len(choose_drafters(index, schedule, 0.3, 1.0)) == 6
