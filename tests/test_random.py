import pytest
import torch

from var.random import Rng


@pytest.mark.parametrize("kind", ["exponential", "normal", "uniform"])
def test_a_stream_does_not_depend_on_its_neighbours(kind: str) -> None:
    batch, alone = Rng([3, 4, 5]), Rng([4])
    for shape in [(2,), (3, 7), (1,)]:
        together = getattr(batch, kind)(*shape)
        assert together.shape == (3, *shape)
        assert torch.equal(together[1:2], getattr(alone, kind)(*shape))


def test_a_stream_goes_on_and_another_one_begins_anew() -> None:
    rng = Rng([0])
    first = rng.normal(4)
    assert not torch.equal(first, rng.normal(4))
    assert torch.equal(first, Rng([0]).normal(4))


def test_seeds_of_a_batch_are_consecutive() -> None:
    assert torch.equal(Rng.batch(5, 3).normal(2), Rng([5, 6, 7]).normal(2))
    assert len(Rng.batch(5, 3)) == 3


def test_some_of_the_streams_go_on_where_they_are() -> None:
    batch, whole = Rng([3, 4, 5]), Rng([3, 4, 5])
    assert torch.equal(batch.uniform(2), whole.uniform(2))
    some = batch.rows(torch.tensor([2, 0]))
    assert len(some) == 2 and torch.equal(some.normal(3), whole.normal(3)[[2, 0]])


def test_joined_streams_go_on_where_they_are() -> None:
    ours, theirs, whole = Rng([3]), Rng([4, 5]), Rng([3, 4, 5])
    both = ours.joined(theirs)
    assert torch.equal(both.uniform(2), whole.uniform(2))
    assert torch.equal(theirs.normal(3), whole.normal(3)[1:])
