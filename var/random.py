"""Random streams, one per image: an image depends on its seed, never on its batch.

Ground floor; heads ask for noise, the command line hands out the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def rows(self, index: Sequence[int]) -> Rng:
        """Return the streams of some of the images, which go on where they are."""
        some = Rng([], self.device)
        some.streams = [self.streams[i] for i in index]
        return some

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
