"""Random streams, one per image: an image depends on its seed, never on its batch.

Ground floor; heads ask for noise, the command line hands out the seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Rng:
    """One `torch.Generator` per image of a batch.

    Args:
        seeds: one seed per image, each in 0..2**63-1.
        device: where noise is drawn.

    >>> a, b = Rng([5, 6]).exponential(3), Rng([6]).exponential(3)
    >>> bool((a[1] == b[0]).all())
    True
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.streams = [torch.Generator(self.device).manual_seed(int(seed)) for seed in seeds]

    @classmethod
    def batch(cls, seed: int, size: int, device: torch.device | str = "cpu") -> Rng:
        """Return the streams of a batch of `size` images, seeded `seed`, `seed + 1`, ..."""
        return cls(range(seed, seed + size), device)

    def rows(self, index: Tensor) -> Rng:
        """Return the streams of some of the images, those of `index` (b,) int64, as they are."""
        return self._with(self.streams[i] for i in index.tolist())

    def joined(self, *others: Rng) -> Rng:
        """Return these streams and others, as they are."""
        return self._with(stream for each in (self, *others) for stream in each.streams)

    def _with(self, streams: Iterable[torch.Generator]) -> Rng:
        rng = Rng([], self.device)
        rng.streams = list(streams)
        return rng

    def __len__(self) -> int:
        return len(self.streams)

    def exponential(self, *shape: int) -> Tensor:
        """Draw from Exp(1) for each image: (B, *shape) float32."""
        noise = torch.empty(len(self), *shape, device=self.device)
        for row, stream in zip(noise, self.streams, strict=True):
            row.exponential_(generator=stream)
        return noise

    def uniform(self, *shape: int) -> Tensor:
        """Draw from U(0, 1) for each image: (B, *shape) float32."""
        noise = torch.empty(len(self), *shape, device=self.device)
        for row, stream in zip(noise, self.streams, strict=True):
            row.uniform_(generator=stream)
        return noise

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, 1) for each image: (B, *shape) float32."""
        noise = torch.empty(len(self), *shape, device=self.device)
        for row, stream in zip(noise, self.streams, strict=True):
            row.normal_(generator=stream)
        return noise
