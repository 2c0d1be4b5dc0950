import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from var.schedule import Schedule

ladders = st.lists(
    st.one_of(st.integers(1, 6), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    min_size=1,
    max_size=6,
)


@st.composite
def spans(draw: st.DrawFn) -> tuple[Schedule, int, int]:
    schedule = Schedule.scales(draw(ladders))
    start = draw(st.integers(0, len(schedule) - 1))
    return schedule, start, draw(st.integers(start + 1, len(schedule)))


@given(ladders)
def test_groups_lie_end_to_end(ladder: list) -> None:
    schedule = Schedule.scales(ladder)
    assert schedule.sizes == tuple(h * w for h, w in schedule.grids)
    ends = [schedule[k : k + 1].positions for k in range(len(schedule))]
    assert [p.start for p in ends] == list(schedule.starts[:-1])
    assert [p.stop for p in ends] == list(schedule.starts[1:])


@given(spans())
def test_a_span_is_as_long_as_its_groups(case: tuple[Schedule, int, int]) -> None:
    schedule, start, stop = case
    span = schedule[start:stop]
    assert len(span) == sum(span.sizes) == len(span.levels())
    assert span.levels().unique().tolist() == list(range(start, stop))
    assert span.grids == schedule.grids[start:stop]


@given(spans(), st.integers(0, 7))
def test_a_tail_ends_where_its_span_does(case: tuple[Schedule, int, int], cut: int) -> None:
    schedule, start, stop = case
    if cut < stop:
        tail = schedule[start:stop].tail(cut)
        assert (tail.start, tail.stop) == (max(start, cut), stop)


@given(spans(), st.integers(0, 5), st.booleans())
def test_the_mask_lets_everyone_see_the_past_and_nobody_the_future(
    case: tuple[Schedule, int, int], past: int, own: bool
) -> None:
    schedule, start, stop = case
    span = schedule[start:stop]
    mask = span.mask(past=past, own=own)
    if mask is None:
        mask = torch.ones(len(span), past + len(span), dtype=torch.bool)
    levels = span.levels().tolist()
    for i, reader in enumerate(levels):
        assert mask[i, :past].all() != own or past == 0
        for j, read in enumerate(levels):
            assert mask[i, past + j] == (read == reader if own else read <= reader)


def test_masks_are_left_out_where_everyone_sees_everyone() -> None:
    schedule = Schedule.scales([1, 2, 3])
    assert schedule[1:2].mask(past=1) is None
    assert schedule[1:2].mask(own=True) is None
    assert schedule[1:2].mask(past=1, own=True) is not None
    assert schedule[0:2].mask() is not None


def test_levels_first_seen_while_sampling_serve_training() -> None:
    schedule = Schedule.scales([1, 2, 7])
    with torch.inference_mode():
        levels = schedule[:].levels()
    weight = torch.randn(3, 4, requires_grad=True)
    weight[levels].sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("groups", [slice(1, 1), slice(3, 5), slice(0, 3, 2)])
def test_a_span_has_one_or_more_consecutive_groups(groups: slice) -> None:
    with pytest.raises(ValueError, match="consecutive groups"):
        Schedule.scales([1, 2, 3])[groups]


def test_equal_ladders_make_equal_schedules() -> None:
    assert Schedule.scales([1, [2, 3]]) == Schedule.scales([(1, 1), (2, 3)])
    assert Schedule.scales([1, 2]) != Schedule.scales([1, 3])


@pytest.mark.parametrize("ladder", [[], [0], [(2, 0)]])
def test_grids_have_positive_sizes(ladder: list) -> None:
    with pytest.raises(ValueError, match="at least one grid of positive size"):
        Schedule.scales(ladder)


def test_cells_belong_to_grids() -> None:
    with pytest.raises(ValueError, match="2 grids but cells for 1 groups"):
        Schedule(grids=((1, 1), (2, 2)), cells=(None,))
    assert Schedule(grids=((2, 2), (2, 2)), cells=((0,), (1, 2, 3))).sizes == (1, 3)


sides = st.integers(1, 5)


@given(sides, sides)
def test_a_raster_decides_cell_after_cell_row_by_row(h: int, w: int) -> None:
    schedule = Schedule.raster((h, w))
    assert len(schedule) == h * w and set(schedule.sizes) == {1}
    assert set(schedule.grids) == {(h, w)} and schedule.is_raster
    assert [cell for cells in schedule.cells for cell in cells or ()] == list(range(h * w))
    assert schedule[1:].positions == slice(1, h * w) if h * w > 1 else True
    assert (schedule == Schedule.raster((w, h))) == (h == w)


def test_a_raster_of_a_side_is_square() -> None:
    assert Schedule.raster(3) == Schedule.raster((3, 3)) == Schedule.raster([3, 3])
    for grid in (0, (2, 0), (-1, 2)):
        with pytest.raises(ValueError, match="at least one grid of positive size"):
            Schedule.raster(grid)


def test_other_orders_are_no_raster() -> None:
    one = Schedule(grids=((1, 1),), cells=((0,),))
    assert one.is_raster and not Schedule.scales([1]).is_raster
    assert not Schedule.scales([1, 2]).is_raster
    order = tuple((cell,) for cell in (0, 2, 1, 3))
    assert not Schedule(grids=((2, 2),) * 4, cells=order).is_raster
    assert not Schedule(grids=((2, 2),) * 2, cells=((0, 1), (2, 3))).is_raster
    part = Schedule.raster(2)
    assert not Schedule(grids=part.grids[:3], cells=part.cells[:3]).is_raster


def test_equal_schedules_are_one_key_and_others_are_not() -> None:
    first, again = Schedule.raster(4), Schedule.raster(4)
    assert first is not again and first == again and hash(first) == hash(again)
    assert len({first, again, Schedule.raster((2, 8)), Schedule.scales([1, 2])}) == 3
    assert first[2:5] == again[2:5] and hash(first[2:5]) == hash(again[2:5])
    assert first[2:5] != first[2:6] and first != "schedule" and first != first.grids
    # What has the same grids, and other cells.
    assert Schedule.scales([1]) != Schedule(grids=((1, 1),), cells=((0,),))
