"""The canvas of next-token models: what is read back, and where vectors come to lie."""

import pytest
import torch
from torch import Tensor

from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.chain import Chain

RASTER = Schedule.raster((2, 3))
CODES = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
# Of the cells 0 1 2 / 3 4 5 the middle column first, then the others from below.
ORDER = (1, 4, 5, 3, 2, 0)
PERMUTED = Schedule(grids=((2, 3),) * 6, cells=tuple((cell,) for cell in ORDER))


def blank(schedule: Schedule = RASTER) -> Chain:
    return Chain.blank(2, schedule, lambda ids: CODES[ids], torch.device("cpu"))


def tokens(count: int = 6) -> list[Tensor]:
    ids = torch.randint(10, (2, 6), generator=torch.Generator().manual_seed(1))
    return list(ids[:, :count].split(1, dim=1))


def test_each_position_reads_the_token_before_it_and_the_first_reads_nought() -> None:
    canvas, ids = blank().write(*tokens()), torch.cat(tokens(), dim=1)
    seen = canvas.read(RASTER[:])
    assert seen.dtype == torch.int64 and seen.shape == (2, 6)
    assert not seen[:, 0].any() and torch.equal(seen[:, 1:], ids[:, :5])
    assert torch.equal(canvas.read(RASTER[2:4]), ids[:, 1:3])
    assert torch.equal(canvas.ids, ids) and canvas.done == 6


def test_the_next_token_can_be_predicted_and_none_after_it() -> None:
    canvas = blank().write(*tokens(2))
    assert torch.equal(canvas.read(RASTER[2:3]), tokens()[1])
    assert torch.equal(blank().read(RASTER[:1]), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="token 3 cannot be predicted: only 2 are written"):
        canvas.read(RASTER[2:4])


@pytest.mark.parametrize("schedule", [RASTER, PERMUTED])
def test_several_tokens_at_once_are_written_as_one_by_one(schedule: Schedule) -> None:
    once, one = blank(schedule).write(*tokens()), blank(schedule)
    for done, token in enumerate(tokens()):
        assert one.done == done
        one = one.write(token)
    assert torch.equal(one.read(schedule[:]), once.read(schedule[:]))
    assert torch.equal(one.latent, once.latent)
    torch.testing.assert_close(blank(schedule).write().latent, torch.zeros(2, 4, 2, 3))


def test_writing_leaves_the_canvas_before_it_as_it_was() -> None:
    first = blank().write(*tokens(3))
    ids, latent = first.ids.clone(), first.latent.clone()
    first.write(tokens()[3])
    assert torch.equal(first.ids, ids) and torch.equal(first.latent, latent)


@pytest.mark.parametrize(("schedule", "order"), [(RASTER, range(6)), (PERMUTED, ORDER)])
def test_vectors_lie_on_the_cells_of_the_schedule_and_the_rest_is_nought(
    schedule: Schedule, order: tuple[int, ...]
) -> None:
    latent = blank(schedule).write(*tokens(4)).latent
    assert latent.shape == (2, 4, 2, 3)
    for token, cell in zip(tokens(4), order, strict=False):
        assert torch.equal(latent[:, :, cell // 3, cell % 3], CODES[token[:, 0]])
    for cell in order[4:]:
        assert not latent[:, :, cell // 3, cell % 3].any()


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.scales([1, 2]),
        Schedule.scales([1]),
        Schedule(grids=((2, 2),) * 2, cells=((0, 1), (2, 3))),
        Schedule(grids=((2, 2), (4, 4)), cells=((0,), (1,))),
    ],
)
def test_what_is_no_chain_is_refused_with_the_remedy(schedule: Schedule) -> None:
    side = schedule.grids[-1][0]
    with pytest.raises(UserError, match=rf"say schedule=\{{raster: {side}\}}$"):
        blank(schedule)


def test_mixtures_and_tokens_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="written with ids"):
        blank().write(torch.rand(2, 1, 10))
    with pytest.raises(ValueError, match=r"5 \+ 2 tokens for 6 cells"):
        blank().write(*tokens(5)).write(*tokens(2))
