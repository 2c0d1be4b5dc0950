"""How good images are: Frechet distance and label agreement, PSNR of reconstructions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics.aggregation import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance

from var.metrics.networks import Network, device_of
from var.pixels import to_uint8


class Given(nn.Identity):
    """The "feature network" of a metric that is handed features instead of images.

    Args:
        num_features: length of a feature vector; torchmetrics asks for it by this name.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class Likeness:
    """Distance of generated images to real ones, and how many show what they should.

    Args:
        network: the feature network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        given = Given(network.num_features)
        self.distance = FrechetInceptionDistance(feature=given, reset_real_features=False)
        device = device_of(network)
        self.distance.to(device)
        self.agreement = MeanMetric(nan_strategy="disable").to(device)

    def forget_fakes(self) -> None:
        """Begin with other generated images against the same real ones."""
        self.distance.reset()
        self.agreement.reset()

    @torch.inference_mode()
    def real(self, batches: Iterable[Tensor]) -> None:
        """Add real images (B, 3, H, W) in [0, 1]."""
        for image in batches:
            self.distance.update(self.network(to_uint8(image)).features, real=True)

    @torch.inference_mode()
    def fake(self, image: Tensor, label: Tensor) -> None:
        """Add generated images (B, 3, H, W) in [0, 1] and the classes (B,) they should show."""
        seen = self.network(to_uint8(image))
        self.distance.update(seen.features, real=False)
        if self.network.labelled and seen.logits is not None:
            self.agreement.update((seen.logits.argmax(dim=-1) == label).float())

    def report(self) -> dict[str, float]:
        """Return the Frechet distance and, of a network that tells it, the label agreement.

        They are those of all processes, each of which has to ask.
        """
        figures = {"frechet_distance": float(self.distance.compute())}
        if self.network.labelled:
            figures["label_agreement"] = float(self.agreement.compute())
        return figures


def psnr() -> PeakSignalNoiseRatio:
    """Return the metric of mean peak signal-to-noise ratio over images in [0, 1], in dB."""
    return PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean")
