"""The contract between the training loop and what is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from var.random import Rng


class Task(Protocol):
    """One kind of training run.

    Attributes:
        module: what is trained and checkpointed; the loop wraps it (several processes, EMA).
        blocks: its repeated blocks, to be recomputed or shared out one by one; of a module that is
            neither, none.
    """

    module: nn.Module

    @property
    def blocks(self) -> Iterable[nn.Module]: ...  # noqa: D102

    def to(self, device: torch.device) -> None:
        """Move everything that the task computes with to a device."""
        ...

    def start(self, image: Tensor, rng: torch.Generator) -> None:
        """Set `module` up before a new run's first step, on the first images of the run.

        They are the same on all processes. Images are (B, 3, H, W) in [0, 1], labels (B,) int64,
        here and below.
        """
        ...

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return named scalar losses of a batch; `total` is minimised, the others are shown.

        `module` is `self.module` as the loop has wrapped it; the random streams, one per image,
        depend on the seed, the step and the image's place in the batch alone.
        """
        ...

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Act after optimiser step number `step`."""
        ...

    def report(self) -> dict[str, float]:
        """Return figures gathered since the last report."""
        ...

    def preview(self, module: nn.Module) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] that show the state of `module`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what else a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        ...
