"""What tells better images from worse: any function of images and labels will do, here is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from var.errors import UserError
from var.metrics.networks import Network
from var.pixels import to_uint8

# Images (b, 3, H, W) in [0, 1], finished or not, and their labels (b,) int64, -1 for none, to
# scores (b,): higher is better.
Scorer = Callable[[Tensor, Tensor], Tensor]


class ClassLogProbability:
    """Scores images by the log-probability that a network gives their labels.

    Args:
        network: a feature network that tells the classes of the data; it goes where the images are.

    Raises:
        UserError: it tells other classes, or none.
    """

    def __init__(self, network: Network) -> None:
        if not network.labelled:
            raise UserError(
                f"{network.name} does not tell the classes of the data: it cannot score"
            )
        self.network = network

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scores (b,) of images (b, 3, H, W) in [0, 1] with labels (b,).

        Raises:
            UserError: a label is none of the network's classes.
        """
        cast(nn.Module, self.network).to(images.device)
        logits = self.network(to_uint8(images)).logits
        assert logits is not None
        low, high = (int(label) for label in labels.aminmax())
        if low < 0 or high >= logits.shape[1]:
            raise UserError(
                f"label {low if low < 0 else high} cannot be scored: "
                f"{self.network.name} tells classes 0..{logits.shape[1] - 1}"
            )
        return logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
