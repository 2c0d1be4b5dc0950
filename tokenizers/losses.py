"""What a reconstruction is judged by: terms behind one contract, summed by `Objective`.

A term is a module that takes (image, reconstruction), both (B, 3, H, W) around [0, 1], and returns
named losses. Terms may have parameters of their own (a discriminator), for the same optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class Reconstruction(nn.Module):
    """Pixel distance, in the units of images in [-1, 1] (the published scale).

    Args:
        l1, l2: weights of the mean absolute and the mean squared error.
    """

    def __init__(self, *, l1: float = 0.0, l2: float = 1.0) -> None:
        super().__init__()
        self.l1, self.l2 = l1, l2

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted errors."""
        error = 2 * (reconstruction - image)
        return {"l1": self.l1 * error.abs().mean(), "l2": self.l2 * error.square().mean()}


class Perceptual(nn.Module):
    """LPIPS distance by the `lpips` package (extra `perceptual`); it downloads its network once.

    Args:
        weight: of the term.
        net: `vgg`, `alex` or `squeeze`.
    """

    def __init__(self, *, weight: float = 1.0, net: str = "vgg") -> None:
        super().__init__()
        from lpips import LPIPS

        self.weight = weight
        self.lpips = LPIPS(net=net, verbose=False).requires_grad_(False)

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted distance."""
        distance = self.lpips(image * 2 - 1, reconstruction * 2 - 1)
        return {"perceptual": self.weight * distance.mean()}


class PatchDiscriminator(nn.Sequential):
    """Judge overlapping patches: image (B, 3, H, W) to logits (B, 1, h, w), high for real ones.

    Args:
        width: channels of the first layer, doubled at each further one.
        layers: convolutions of stride 2.
    """

    def __init__(self, *, width: int = 64, layers: int = 2) -> None:
        widths = [width * 2**i for i in range(layers)]
        stages: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for a, b in zip(widths, [*widths[1:], widths[-1]], strict=True):
            stages += [
                nn.Conv2d(a, b, 4, 2 if b > a else 1, 1),
                nn.GroupNorm(8, b),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*stages, nn.Conv2d(widths[-1], 1, 4, 1, 1))


class Adversarial(nn.Module):
    """Hinge loss against a discriminator that learns at the same time.

    Both losses are returned and summed: the discriminator's weights are held fixed in the
    generator's term and the reconstruction in the discriminator's, so that one backward pass
    gives each its own gradient.

    Args:
        discriminator: image to patch logits.
        weight: of the generator's term.
        start: training steps before the generator's term counts.
    """

    steps: Tensor

    def __init__(self, *, discriminator: nn.Module, weight: float = 0.1, start: int = 0) -> None:
        super().__init__()
        self.discriminator, self.weight, self.start = discriminator, weight, start
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the generator's and the discriminator's loss."""
        fixed = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, fixed, (reconstruction * 2 - 1,))
        real = self.discriminator(image * 2 - 1)
        fake = self.discriminator(reconstruction.detach() * 2 - 1)
        weight = self.weight * (self.steps >= self.start)
        if self.training:
            self.steps += 1
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return {"adversarial": -weight * fooled.mean(), "discriminator": hinge}


class Objective(nn.Module):
    """The sum of named terms.

    Args:
        terms: modules that take (image, reconstruction) and return named losses.
    """

    def __init__(self, terms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the losses of all terms by name; their sum is what is minimised."""
        losses: dict[str, Tensor] = {}
        for term in self.terms.values():
            losses |= term(image, reconstruction)
        return losses
