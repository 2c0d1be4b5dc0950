"""Which images make up which batch: a function of the seed and the step, nothing else.

Any number of processes sees the same global batches in the same order, and a resumed run goes on
exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from var.data.images import Batch, ImageData
from var.errors import UserError


class Batches(Sampler[list[int]]):
    """Endless lists of numbers, one per micro-batch, from a fresh shuffle each epoch.

    A number is `epoch * length + index`, as `ImageData` takes it: no two are the same.

    Args:
        length: of the data set.
        size: images in a global micro-batch, over all processes.
        seed: of the shuffles.
        start: global micro-batches to skip, for resuming.
        shard: (which, of how many) equal parts of each micro-batch to yield.

    Raises:
        UserError: the batch is larger than the data set or cannot be shared out evenly.
    """

    def __init__(
        self, length: int, size: int, seed: int, start: int = 0, shard: tuple[int, int] = (0, 1)
    ) -> None:
        if size > length:
            raise UserError(f"a batch of {size} is larger than the data set of {length} images")
        if size % shard[1]:
            raise UserError(f"a batch of {size} cannot be shared by {shard[1]} processes")
        self.length, self.size, self.seed, self.start, self.shard = length, size, seed, start, shard

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.length // self.size
        epoch, skip = divmod(self.start, per_epoch)
        which, share = self.shard[0], self.size // self.shard[1]
        while True:
            rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.length, generator=rng) + epoch * self.length
            for batch in range(skip, per_epoch):
                first = batch * self.size + which * share
                yield order[first : first + share].tolist()
            epoch, skip = epoch + 1, 0


class _Told(Dataset[Batch | UserError]):
    """A data set whose complaints are handed on like batches.

    Raised in a worker process they would arrive as pages of traceback.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitems__(self, numbers: Sequence[int]) -> Batch | UserError:
        try:
            return self.data.__getitems__(numbers)
        except UserError as error:
            return error


def _as_is(batch: Batch | UserError) -> Batch | UserError:
    return batch


def loader(data: ImageData, batches: Iterable[list[int]]) -> Iterator[Batch]:
    """Yield the `Batch`es of `data` with these numbers, in pinned memory where there is a GPU.

    They are read ahead by as many processes as `data.workers` says.

    Raises:
        UserError: one cannot be read.
    """
    loaded = DataLoader(
        _Told(data),
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        num_workers=data.workers,
        collate_fn=_as_is,  # pyright: ignore[reportArgumentType]
        pin_memory=torch.cuda.is_available(),
        # Of its own: opening a loader must not move the random state that a resumed run restored.
        generator=torch.Generator(),
    )
    for batch in loaded:
        if isinstance(batch, UserError):
            raise batch
        yield batch
