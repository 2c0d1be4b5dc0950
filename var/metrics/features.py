"""Small classifiers as feature networks: an offline stand-in for Inception on small data sets.

Their 128 penultimate features serve as a Frechet distance, their logits as label agreement. Such a
distance is not FID: report it as "FD-<network>", with the reference split and the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from var.errors import UserError
from var.metrics.networks import Seen


class SmallClassifier(nn.Module):
    """A convolutional classifier and its penultimate features, 128 of them.

    Args:
        name: of the Frechet distance that it gives.
        mean, deviation: per channel of the pixels in [0, 1]; one number each: grey images.
        stages: channel counts between poolings; the last convolution of the last stage is 1x1.
        classes: number of classes.
        padding: pixels around images that it was not shown.
        side: of the images that it was shown, in pixels; None: it takes any.
    """

    num_features, labelled = 128, True
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        *,
        name: str = "FD-SmallCNN",
        mean: Sequence[float],
        deviation: Sequence[float],
        stages: Sequence[Sequence[int]] = ((32, 32), (64, 64), (128, 128, 128)),
        classes: int = 10,
        padding: int = 0,
        side: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.padding, self.side = name, padding, side
        layers: list[nn.Module] = []
        now = len(mean)
        for i, stage in enumerate(stages):
            layers += [nn.MaxPool2d(2)] if i else []
            for j, width in enumerate(stage):
                last = i == len(stages) - 1 and j == len(stage) - 1
                layers += _convolution(now, width, 1 if last else 3)
                now = width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, classes)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Seen:
        """Return features (B, 128) and logits (B, classes) of images (B, 3, H, W) uint8."""
        x = (self.native(image).float() / 255 - self.mean) / self.deviation
        features = self.layers[:-1](x)
        return Seen(features, self.layers[-1](features))

    def extra_repr(self) -> str:
        """Return what decides what it sees, besides weights and buffers."""
        return f"padding={self.padding}, side={self.side}"

    def native(self, image: Tensor) -> Tensor:
        """Return images (B, 3, H, W) uint8 as it was shown them, (B, C, h, w) uint8.

        Raises:
            UserError: they are of another size.
        """
        height, width = (edge - self.padding for edge in image.shape[-2:])
        image = image[..., self.padding : height, self.padding : width]
        if self.side is not None and tuple(image.shape[-2:]) != (self.side, self.side):
            asked, given = self.side + 2 * self.padding, " x ".join(map(str, image.shape[-2:]))
            raise UserError(
                f"{self.name} is for images of {asked} pixels, of which it sees {self.side}; of "
                f"these {given} would be left: use other features, or set features.padding"
            )
        if len(self.mean) == 1:
            image = image.float().mean(dim=1, keepdim=True).round().byte()
        return image


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def small_classifier(path: str | Path, **shape: Any) -> SmallClassifier:
    """Return the classifier of a safetensors file with `nn.Sequential` names (`0.weight`, ...).

    Args:
        path: of the file.
        shape: keywords of `SmallClassifier`.

    Raises:
        UserError: there is no such file, or it holds another network.
    """
    if not Path(path).is_file():
        raise UserError(f"no feature network at {path}: set features.path to its safetensors file")
    net = SmallClassifier(**shape)
    try:
        state = {f"layers.{key}": value for key, value in load_file(path).items()}
        missing, unknown = net.load_state_dict(state, strict=False)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} is another network: {error}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unknown:
        raise UserError(f"{path} is another network: missing {missing}, unknown {unknown}")
    return net.eval()


def digits_classifier() -> SmallClassifier:
    """Return the classifier of handwritten digits that comes with the package, for 16x16 images.

    It is right about 99.0 % of the 297 test images; docs/evaluation.md says how it was trained.
    """
    return small_classifier(
        Path(__file__).with_name("digits_cnn.safetensors"),
        name="FD-DigitsCNN",
        mean=[0.31],
        deviation=[0.35],
        side=16,
        stages=[[16, 16], [32, 32], [64, 128]],
    )
