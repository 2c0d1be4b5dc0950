"""Samples in an `.npz` file, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var.bars import progress_bar
from var.digests import checksum
from var.errors import UserError
from var.evaluation import npz, scoring
from var.evaluation.parts import Parts
from var.evaluation.reference import Reference
from var.evaluation.scoring import Scores
from var.evaluation.subject import Notes, look
from var.metrics.networks import Network, device_of


@dataclass(frozen=True)
class Stored:
    """The images of a file.

    Attributes:
        batch: the file.
        network: who looks.
        resize: side in pixels to which images are resized, see `look`; None: as they are.
    """

    batch: npz.Batch
    network: Network
    resize: int | None = None

    kind, needed = "generation", ()

    @classmethod
    def read(cls, path: str | Path, network: Network, resize: int | None = None) -> Stored:
        """Return the images of a file.

        Raises:
            UserError: it cannot be read, or holds no images.
        """
        batch = npz.Batch(path)
        if not len(batch):
            raise UserError(f"samples={path} holds no images, {npz.IMAGES}, only moments")
        return cls(batch, network, resize)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.batch)

    @property
    def size(self) -> int:
        """Side of the images that are measured, in pixels."""
        return self.resize or self.batch.shape[1]

    def settings(self) -> dict[str, Any]:
        """Return the sha256 of the file."""
        return {"samples": checksum(self.batch.path)}

    def fill(self, parts: Parts, todo: Sequence[int], bar: bool) -> None:
        """Make parts: `features` (n, D), what else is seen, and `label` (n,), 0 throughout."""
        device = device_of(self.network)
        # A compressed file can only be read from its beginning.
        every = islice(self.batch.batches(parts.size), len(parts.ranges))
        wanted = set(todo)
        with progress_bar(total=len(todo), unit="batch", shown=bar) as shown:
            for part, images in enumerate(every):
                if part in wanted:
                    seen = look(images.to(device).float() / 255, self.network, self.resize)
                    label = torch.zeros(len(images), dtype=torch.int64)  # they do not say
                    parts.add(part, {"label": label, **seen}, images=len(images))
                    shown.update()

    def scores(
        self, found: Mapping[str, Tensor], reference: Reference | None, draws: int
    ) -> Scores:
        """Return Frechet distances, precision and recall."""
        assert reference is not None
        return scoring.of_features(found, reference, self.network, draws)

    def results(self, found: Mapping[str, Tensor], notes: Notes) -> dict[str, Any]:
        """Return nothing: there is no model."""
        return {}
