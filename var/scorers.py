"""What tells better images from worse: any function of images and conditions; here is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from var.condition import Condition
from var.errors import UserError
from var.metrics.networks import Network, exact
from var.pipeline import Pipeline
from var.pixels import to_uint8

# Images (b, 3, H, W) in [0, 1], finished or not, and what each shall show, b of them: its class in
# `labels` (b,) int64, -1 for none, or its `text`; to scores (b,): higher is better. If it has a
# method `check(pipe, condition)`, that is called before anything is drawn, to refuse what it cannot
# score.
Scorer = Callable[[Tensor, Condition], Tensor]


class ClassLogProbability:
    """Scores images by the log-probability that a network gives their labels.

    Args:
        network: a feature network that tells the classes of the data; it goes where the images are.

    Raises:
        UserError: it tells other classes, or none.
    """

    def __init__(self, network: Network) -> None:
        if not getattr(network, "labelled", False):
            name = getattr(network, "name", "features=none")
            raise UserError(
                f"{name} does not tell the classes of the data: it cannot score, take a classifier"
            )
        self.network = network

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        """Return the scores (b,) of images (b, 3, H, W) in [0, 1] that shall show their labels.

        Raises:
            UserError: a label is none of the network's classes, or it is texts that they show.
        """
        logits = self._logits(images)
        self._check(condition, logits.shape[1])
        return logits.log_softmax(dim=1).gather(1, condition.labels[:, None])[:, 0]

    def check(self, pipe: Pipeline, condition: Condition) -> None:
        """Check that the images of a pipeline can be scored.

        Raises:
            UserError: see a call; or the pipeline has other classes, or images of another size.
        """
        (h, w), side = pipe.schedule.grids[-1], pipe.tokenizer.factor
        classes = self._logits(torch.zeros(1, 3, h * side, w * side, device=pipe.device)).shape[1]
        self._check(condition, classes)
        if classes != pipe.class_count:
            raise UserError(
                f"{self.network.name} tells {classes} classes, this model makes images of "
                f"{pipe.class_count}: take a classifier of the same data"
            )

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        cast(nn.Module, self.network).to(images.device)
        logits = exact(self.network, to_uint8(images)).logits
        assert logits is not None
        return logits

    def _check(self, condition: Condition, classes: int) -> None:
        if condition.text is not None:
            raise UserError(
                f"{self.network.name} tells classes, and these images show texts: take a scorer "
                "that reads them"
            )
        odd = [label for label in condition.labels.tolist() if not 0 <= label < classes]
        if odd:
            raise UserError(
                f"label {odd[0]} cannot be scored: {self.network.name} tells classes "
                f"0..{classes - 1}"
            )
