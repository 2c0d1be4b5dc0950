"""Batches are a function of the seed and the step alone."""

from collections.abc import Sequence
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from var.data.batches import Batches, loader
from var.data.images import Batch, Images, digits
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
    one, two = (
        [number % 20 for batch in part for number in batch]
        for part in (first(10, Batches(20, 4, 0))[:5], first(10, Batches(20, 4, 0))[5:])
    )
    assert sorted(one) == sorted(two) == list(range(20))
    assert one != two


def test_numbers_count_on_through_the_epochs() -> None:
    numbers = sum(first(15, Batches(20, 4, 0)), [])
    assert [number // 20 for number in numbers] == 20 * [0] + 20 * [1] + 20 * [2]
    assert sum(first(5, Batches(20, 4, 0, start=10)), []) == numbers[40:]


@pytest.mark.parametrize(("size", "shard"), [(21, (0, 1)), (5, (0, 2))])
def test_batches_that_cannot_be_made_are_refused(size: int, shard: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"a batch of {size}"):
        Batches(20, size, 0, 0, shard)


class Numbers(Images):
    """A data set whose images are their numbers, of which number 7 cannot be read."""

    name, classes, size = "numbers", ("any",), 1

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __len__(self) -> int:
        return 5

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        if 7 in numbers:
            raise UserError("number 7 is damaged: restore it")
        return Batch(torch.tensor(numbers), torch.tensor(numbers) % 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_hands_out_the_batches_in_order_whoever_reads(workers: int) -> None:
    before = torch.get_rng_state()
    got = [batch.image.tolist() for batch in loader(Numbers(workers), [[3, 1], [9, 8, 6], [0]])]
    assert got == [[3, 1], [9, 8, 6], [0]]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_one_line_whoever_reads(workers: int) -> None:
    batches = loader(Numbers(workers), [[3, 1], [7, 0], [2, 4]])
    assert next(batches).image.tolist() == [3, 1]
    with pytest.raises(UserError, match="^number 7 is damaged: restore it$"):
        next(batches)


def test_images_in_memory_are_the_same_in_every_epoch() -> None:
    data = digits(train=False)
    for part, again in zip(data.__getitems__([3, 5]), data.__getitems__([300, 599]), strict=True):
        assert torch.equal(part, again)
    assert data.plain() is data
