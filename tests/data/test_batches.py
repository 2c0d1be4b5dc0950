"""Batches are a function of the seed and the step alone."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from var.data.batches import Batches
from var.errors import UserError


def first(count: int, sampler: Batches) -> list[list[int]]:
    return list(islice(iter(sampler), count))


@given(start=st.integers(0, 25), seed=st.integers(0, 5))
def test_a_resumed_order_is_the_rest_of_the_whole_order(start: int, seed: int) -> None:
    whole = first(30, Batches(23, 4, seed))
    assert first(30 - start, Batches(23, 4, seed, start)) == whole[start:]


@given(processes=st.sampled_from([1, 2, 4]), seed=st.integers(0, 5))
def test_the_shares_of_all_processes_make_up_the_global_batches(processes: int, seed: int) -> None:
    shares = [first(12, Batches(23, 4, seed, 3, (i, processes))) for i in range(processes)]
    joined = [sum(parts, []) for parts in zip(*shares, strict=True)]
    assert joined == first(12, Batches(23, 4, seed, 3))


def test_an_epoch_shows_each_image_at_most_once_and_the_next_another_order() -> None:
    one, two = first(10, Batches(20, 4, 0))[:5], first(10, Batches(20, 4, 0))[5:]
    assert sorted(sum(one, [])) == sorted(sum(two, [])) == list(range(20))
    assert one != two


@pytest.mark.parametrize(("size", "shard"), [(21, (0, 1)), (5, (0, 2))])
def test_batches_that_cannot_be_made_are_refused(size: int, shard: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"a batch of {size}"):
        Batches(20, size, 0, 0, shard)
