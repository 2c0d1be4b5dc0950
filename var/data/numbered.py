"""A data set whose classes are some among others: those that a model knows already."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from var.data.images import Batch, ImageData, Images
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer


class Numbered(Images):
    """Another data set, with other class ids.

    Args:
        data: the data set.
        ids: of its classes from now on.
        classes: names of all classes, by id.
    """

    def __init__(self, data: ImageData, ids: Sequence[int], classes: Sequence[str]) -> None:
        self.data, self.ids, self.classes = data, list(ids), list(classes)
        self.name, self.size = data.name, data.size
        self.workers, self.codes, self.unusable = data.workers, data.codes, data.unusable

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        image, label = self.data.__getitems__(numbers)
        return Batch(image, torch.tensor(self.ids)[label])

    def plain(self) -> ImageData:
        """Return the data set without random crops and flips."""
        return Numbered(self.data.plain(), self.ids, self.classes)

    def digest(self) -> str:
        """Return the sha256 of the other data set: nothing is read in another way."""
        return self.data.digest()

    def version(self) -> str:
        """Return that of the other data set, see `ImageData`."""
        return self.data.version()

    def reader(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return the tokenizer that reads what the other data set hands out."""
        return self.data.reader(tokenizer, schedule)
