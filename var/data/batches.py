"""Which images make up which batch: a function of the seed and the step, nothing else.

Any number of processes sees the same global batches in the same order, and a resumed run goes on
exactly where it stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from var.data.images import Batch, ImageData, note
from var.errors import UserError


class Batches(Sampler[list[int]]):
    """Endless lists of numbers, one per micro-batch, from a fresh shuffle each epoch.

    A number is `epoch * length + index`, as `ImageData` takes it: no two are the same.

    Args:
        length: of the data set.
        size: images in a batch, over all processes and micro-batches.
        seed: of the shuffles.
        start: batches to skip, for resuming.
        shard: (which, of how many) equal parts of each micro-batch to yield.
        parts: micro-batches in a batch, yielded one after the other.

    Raises:
        UserError: the batch is larger than the data set or cannot be shared out evenly.
    """

    def __init__(
        self,
        length: int,
        size: int,
        seed: int,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
        parts: int = 1,
    ) -> None:
        if size > length:
            raise UserError(f"a batch of {size} is larger than the data set of {length} images")
        if size % (parts * shard[1]):
            raise UserError(
                f"a batch of {size} cannot be shared by {shard[1]} processes in {parts} parts"
            )
        self.length, self.size, self.seed, self.start = length, size, seed, start
        self.shard, self.parts = shard, parts

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.length // self.size
        epoch, skip = divmod(self.start, per_epoch)
        share = self.size // (self.parts * self.shard[1])
        while True:
            rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.length, generator=rng) + epoch * self.length
            for part in range(skip * self.parts, per_epoch * self.parts):
                first = (part * self.shard[1] + self.shard[0]) * share
                yield order[first : first + share].tolist()
            epoch, skip = epoch + 1, 0


class _Read(NamedTuple):
    """A batch, or why there is none; and what was found to be unusable on the way."""

    batch: Batch | UserError
    unusable: dict[str, str]


class _Told(Dataset[_Read]):
    """A data set whose complaints are handed on like batches.

    Raised in a worker process they would arrive as pages of traceback.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitems__(self, numbers: Sequence[int]) -> _Read:
        known = len(self.data.unusable)
        try:
            batch = self.data.__getitems__(numbers)
        except UserError as error:
            batch = error
        return _Read(batch, dict(islice(self.data.unusable.items(), known, None)))


def _undisturbed(worker: int) -> None:
    # What asks a run for its end may be sent to all of its processes; that which reads these ends
    # them when it is done.
    for asking in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(asking, signal.SIG_IGN)


def _as_is(read: _Read) -> _Read:
    return read


def loader(
    data: ImageData, batches: Iterable[list[int]], *, pin: bool | None = None
) -> Generator[Batch, None, None]:
    """Yield the `Batch`es of `data` with these numbers, in pinned memory if so wished.

    They are read ahead by as many processes as `data.workers` says; what these find to be unusable
    is in `data.unusable` when the batch is.

    Args:
        data: the images.
        batches: their numbers.
        pin: pin memory; None: where there is a GPU.

    Raises:
        UserError: one cannot be read.
    """
    loaded = DataLoader(
        _Told(data),
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=data.workers,
        collate_fn=_as_is,  # pyright: ignore[reportArgumentType]
        pin_memory=torch.cuda.is_available() if pin is None else pin,
        worker_init_fn=_undisturbed,
        # Of its own: opening a loader must not move the default stream.
        generator=torch.Generator(),
    )
    for batch, unusable in loaded:
        for path, reason in unusable.items():
            note(data.unusable, path, reason)
        if isinstance(batch, UserError):
            raise batch
        yield batch
