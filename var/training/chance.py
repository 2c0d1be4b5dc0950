"""Chance in a training run: a function of the seed, the step and the place in the batch.

So there are no random states to save, and a run goes on exactly, with any number of processes as
far as noise comes from the images' streams.
"""

from __future__ import annotations

import numpy as np
import torch

from var.random import Rng
from var.training.settings import Settings


class Chance:
    """What a process draws.

    Args:
        settings: of the run: its seed and batches.
        process: number of this process.
    """

    def __init__(self, settings: Settings, process: int) -> None:
        self.seed, self.batch_size = settings.seed, settings.batch_size
        self.micro_batch, self.process = settings.micro_batch, process

    def common(self, step: int) -> torch.Generator:
        """Return a stream for a step, the same on all processes."""
        return torch.Generator().manual_seed(self._of(step))

    def streams(self, step: int, micro: int, share: int, device: torch.device) -> Rng:
        """Return a stream for each image of this process's `share` of a micro-batch.

        Images are numbered through the step: each draws the same whoever works on it.
        """
        first = micro * self.micro_batch + self.process * share
        return Rng.batch(self._of(step) * self.batch_size + first, share, device)

    def sow(self, step: int, micro: int) -> None:
        """Seed the default streams, for what is drawn without one of its own, such as dropout."""
        place = np.random.SeedSequence((self.seed, step, micro, self.process))
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0] >> 1))

    def _of(self, step: int) -> int:
        return self.seed * 1_000_003 + step
