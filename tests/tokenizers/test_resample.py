"""Scales that replace each other: what each of them shows, and what is left in the end."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from var.schedule import Schedule
from var.tokenizers.canvas import Kept, keep_masks
from var.tokenizers.resample import Resample, shrunk

CHANNELS = 3
LADDERS = [[1, 2, 4], [1, 3, 4, 8], [(1, 2), (2, 3), (4, 6)], [(4, 2)]]


def blank(schedule: Schedule, batch: int = 2) -> Resample:
    first = torch.zeros(batch, schedule.sizes[0], CHANNELS)
    latent = torch.zeros(batch, CHANNELS, *schedule.grids[-1])
    return Resample(schedule, 0, latent, (first,), lambda tokens: tokens)


def drawn(schedule: Schedule, seed: int = 0, batch: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, size, CHANNELS, generator=rng) for size in schedule.sizes]


def grid(vectors: Tensor, h: int, w: int) -> Tensor:
    return vectors.mT.reshape(len(vectors), -1, h, w)


@pytest.mark.parametrize("ladder", LADDERS)
def test_a_scale_sees_the_one_before_enlarged_and_averaged(ladder: list) -> None:
    schedule = Schedule.scales(ladder)
    tokens = drawn(schedule)
    seen = blank(schedule).write(*tokens).read(schedule[:])
    expected = [torch.zeros_like(tokens[0])]
    for vectors, (h, w), target in zip(
        tokens, schedule.grids, schedule.grids[1:], strict=False
    ):  # the last scale is seen by nobody
        large = F.interpolate(grid(vectors, h, w), schedule.grids[-1], mode="bicubic")
        expected.append(F.interpolate(large, target, mode="area").flatten(2).mT)
    assert torch.equal(seen, torch.cat(expected, dim=1))


@pytest.mark.parametrize("ladder", LADDERS)
def test_the_last_scale_is_the_latent_to_the_last_bit(ladder: list) -> None:
    schedule = Schedule.scales(ladder)
    latent = torch.randn(2, CHANNELS, *schedule.grids[-1])
    canvas = blank(schedule).write(*shrunk(latent, schedule))
    assert canvas.done == len(schedule) and torch.equal(canvas.latent, latent)


def test_tokens_of_a_scale_are_averages() -> None:
    latent = torch.arange(16.0).view(1, 1, 4, 4)
    one, four, sixteen = shrunk(latent, Schedule.scales([1, 2, 4]))
    assert one.flatten().tolist() == [7.5]
    assert four.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert sixteen.flatten().tolist() == list(range(16))
    with pytest.raises(ValueError, match=r"is \(4, 4\), the schedule ends on \(8, 8\)"):
        shrunk(latent, Schedule.scales([8]))


def test_teacher_forcing_reads_what_sampling_reads() -> None:
    schedule = Schedule.scales([1, 3, 4, 8])
    tokens, canvas = drawn(schedule), blank(schedule)
    whole = canvas.write(*tokens)
    for k, group in enumerate(tokens):
        now = canvas.read(schedule[k : k + 1])
        assert torch.equal(now, whole.read(schedule[:])[:, schedule[k : k + 1].positions])
        canvas = canvas.write(group)
    assert torch.equal(canvas.latent, whole.latent)


def test_a_scale_hides_those_before_the_last() -> None:
    schedule = Schedule.scales([1, 2, 4])
    ours, theirs = drawn(schedule, seed=0), drawn(schedule, seed=1)
    mixed = blank(schedule).write(theirs[0], ours[1])
    assert torch.equal(mixed.latent, blank(schedule).write(*ours[:2]).latent)
    assert torch.equal(mixed.read(schedule[2:]), blank(schedule).write(*ours).read(schedule[2:]))


def test_what_is_not_written_cannot_be_read() -> None:
    schedule = Schedule.scales([1, 2, 4])
    canvas = blank(schedule).write(drawn(schedule)[0])
    assert canvas.read(schedule[:2]).shape == (2, 5, CHANNELS)
    with pytest.raises(ValueError, match="scale 2 cannot be read: only 1 scales are written"):
        canvas.read(schedule[:])
    with pytest.raises(ValueError, match="scale 2 cannot be read"):
        canvas.read(schedule[2:])


def test_writing_leaves_the_canvas_as_it_was() -> None:
    schedule = Schedule.scales([1, 2])
    canvas = blank(schedule)
    canvas.write(*drawn(schedule))
    assert canvas.done == 0 and not canvas.latent.any() and len(canvas.views) == 1


def test_another_latent_is_what_the_next_scale_sees() -> None:
    schedule = Schedule.scales([1, 2, 4])
    latent = torch.randn(2, CHANNELS, 4, 4)
    canvas = blank(schedule).write(drawn(schedule)[0]).amended(latent)
    assert canvas.latent is latent and canvas.done == 1
    assert torch.equal(canvas.read(schedule[1:2]), shrunk(latent, schedule)[1])


@pytest.mark.parametrize("ladder", [[1, 2, 4], [(2, 1), (4, 2), (4, 6)]])
def test_kept_cells_are_those_of_the_source(ladder: list) -> None:
    schedule = Schedule.scales(ladder)
    source, tokens = drawn(schedule, seed=0), drawn(schedule, seed=1)
    mask = torch.zeros(schedule.grids[-1])
    mask[:2] = 1
    keep = keep_masks(mask, schedule)
    kept = Kept(blank(schedule), source, keep).write(*tokens)
    mixed = [torch.where(k[:, None], s, t) for k, s, t in zip(keep, source, tokens, strict=True)]
    plain = blank(schedule).write(*mixed)
    assert torch.equal(kept.latent, plain.latent) and kept.done == len(schedule)
    assert torch.equal(kept.read(schedule[:]), plain.read(schedule[:]))
    last, given = grid(tokens[-1], *schedule.grids[-1]), grid(source[-1], *schedule.grids[-1])
    assert torch.equal(kept.latent[:, :, :2], given[:, :, :2])
    assert torch.equal(kept.latent[:, :, 2:], last[:, :, 2:])


def test_each_image_can_keep_cells_of_its_own() -> None:
    schedule = Schedule.scales([2])
    (source,), (tokens,) = drawn(schedule, seed=0), drawn(schedule, seed=1)
    keep = torch.tensor([[True, False, False, True], [False] * 4])
    latent = Kept(blank(schedule), [source], [keep]).write(tokens).latent.flatten(2).mT
    assert torch.equal(latent[0, [0, 3]], source[0, [0, 3]])
    assert torch.equal(latent[0, [1, 2]], tokens[0, [1, 2]]) and torch.equal(latent[1], tokens[1])
