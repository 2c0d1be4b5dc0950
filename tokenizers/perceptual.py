"""Distances as a network sees them: LPIPS, and the same idea over any network of ours or yours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.errors import UserError
from var.tokenizers.frozen import Features


class Perceptual(nn.Module):
    """LPIPS distance by the `lpips` package (extra `perceptual`); it downloads its network once.

    Half of the features are left out at random while training, as published.

    Args:
        weight: of the term.
        net: `vgg`, `alex` or `squeeze`.

    Raises:
        UserError: the package is missing, or its network is not there and cannot be fetched.
    """

    def __init__(self, *, weight: float = 1.0, net: str = "vgg") -> None:
        super().__init__()
        try:
            from lpips import LPIPS

            made = LPIPS(net=net, verbose=False)
        except ModuleNotFoundError as error:
            raise UserError(
                "the perceptual loss needs lpips: pip install 'var-toolkit[perceptual]', or leave "
                "it out, objective=pixels"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot fetch the network {net} of the perceptual loss ({error}): copy it into "
                "$TORCH_HOME/hub/checkpoints by hand, or leave it out, objective=pixels"
            ) from error
        # Known under two names each: checkpoints want every tensor once.
        lins = tuple(made.lins)
        del made.lins
        made.lins = lins
        self.weight, self.lpips = weight, made.requires_grad_(False)

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted distance."""
        distance = self.lpips(image * 2 - 1, reconstruction * 2 - 1)
        return {"perceptual": self.weight * distance.mean()}


class FeatureDistance(nn.Module):
    """LPIPS over any network, without its learnt weights.

    Per place and stage the squared distance of feature vectors of length 1, averaged over places,
    then over stages.

    Args:
        features: images to the maps of some stages.
        weight: of the term.
    """

    def __init__(self, *, features: Features, weight: float = 1.0) -> None:
        super().__init__()
        self.features, self.weight = features, weight

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted distance."""
        with torch.no_grad():
            theirs = [_directions(stage) for stage in self.features(image)]
        ours = [_directions(stage) for stage in self.features(reconstruction)]
        pairs = zip(ours, theirs, strict=True)
        stages = [(a - b).square().sum(dim=1).mean() for a, b in pairs]
        return {"perceptual": self.weight * torch.stack(stages).mean()}


def _directions(features: Tensor) -> Tensor:
    # Where all features are near zero, as behind a ReLU, there is no direction to compare.
    return F.normalize(features.float(), dim=1, eps=1e-3)
