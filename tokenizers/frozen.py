"""Networks that no training changes: their feature maps, and a discriminator that looks at them.

Such a discriminator (projected GAN, arXiv 2111.01007) needs few steps and little data of its own:
what there is to see it knows from the start, and learns only what tells one kind from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.errors import UserError

# Mean and deviation of ImageNet, per channel of images in [0, 1].
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(nn.Module):
    """Feature maps of a frozen network: images (B, 3, H, W) in [0, 1] to a list of (B, C, h, w).

    Args:
        network: takes images and returns a list of maps, as timm's with `features_only` do; or,
            with `after`, any network.
        after: names of the layers whose outputs are taken, as in `network.named_modules()`.
        mean, deviation: by which images are standardised, per channel; by default ImageNet's.
        size: side to which images are resized before, in pixels; None: as they are.

    Raises:
        UserError: there is no network, or it has no such layer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        *,
        network: nn.Module,
        after: Sequence[str] = (),
        mean: Sequence[float] = _MEAN,
        deviation: Sequence[float] = _DEVIATION,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise UserError(
                "the objective needs a feature network: say features=cifar10_cnn features.path=FILE"
            )
        _check_layers(network, after)
        self.network = network.requires_grad_(False).eval()
        self.after, self.size = tuple(after), size
        self.register_buffer("mean", torch.tensor([*mean])[:, None, None])
        self.register_buffer("deviation", torch.tensor([*deviation])[:, None, None])

    def forward(self, image: Tensor) -> list[Tensor]:
        if self.size is not None:
            image = F.interpolate(image, (self.size,) * 2, mode="bilinear", antialias=True)
        image = (image - self.mean) / self.deviation
        return _maps(self.network, self.after, image) if self.after else list(self.network(image))

    def train(self, mode: bool = True) -> Self:
        """Stay as it is: what is frozen has no training mode."""
        return super().train(False)

    @torch.no_grad()
    def channels(self) -> list[int]:
        """Return the number of channels of each map."""
        side = self.size or 64
        return [found.shape[1] for found in self(self.mean.new_zeros(1, 3, side, side))]


class _EnoughError(Exception):
    """All maps are there: what is left of the network need not run."""


def _maps(network: nn.Module, after: Sequence[str], image: Tensor) -> list[Tensor]:
    # Hooks of one call only: they would not follow a copy of the module.
    found: dict[str, Tensor] = {}

    def note(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        found[name] = output
        if len(found) == len(after):
            raise _EnoughError

    hooks = [
        network.get_submodule(name).register_forward_hook(partial(note, name)) for name in after
    ]
    try:
        network(image)
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [found[name] for name in after]


def _check_layers(network: nn.Module, after: Sequence[str]) -> None:
    known = dict(network.named_modules())
    if odd := [name for name in after if name not in known]:
        leaves = [name for name, layer in known.items() if name and not list(layer.children())]
        raise UserError(
            f"the feature network has no layer {odd[0]}: name some of {leaves[0]} … {leaves[-1]}"
        )


class FrozenDiscriminator(nn.Module):
    """Judge feature maps: image (B, 3, H, W) in [-1, 1] to logits (B, S, h, w), high for real ones.

    A small head of its own looks at each of the S maps. Logits of the coarser ones are repeated on
    the grid of the finest, so that all count the same. Nothing is averaged over a batch.

    Args:
        features: images to S maps.
        width: channels of the heads, a multiple of eight.
    """

    def __init__(self, *, features: Features, width: int = 64) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 3, padding=1),
            )
            for channels in features.channels()
        )

    def forward(self, image: Tensor) -> Tensor:
        maps = self.features((image + 1) / 2)
        logits = [head(found) for head, found in zip(self.heads, maps, strict=True)]
        finest = max((found.shape[-2:] for found in logits), key=lambda size: size[0] * size[1])
        return torch.cat([F.interpolate(found, finest) for found in logits], dim=1)


def torchvision_network(name: str, *, path: str | Path | None = None) -> nn.Module:
    """Return a network of torchvision with trained weights.

    Args:
        name: as `torchvision.models.get_model` knows it.
        path: file with its state dict; None: fetched once.

    Raises:
        UserError: there is no network of that name, or its weights are not to be had.
    """
    from torchvision.models import get_model

    try:
        if path is None:
            return get_model(name, weights="DEFAULT")
        network = get_model(name, weights=None)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of url, pickle, zip, torch: all say that it is not to be had
        raise _lacking("torchvision", name, path, error) from error
    return network


def timm_network(name: str, *, stages: Sequence[int], path: str | Path | None = None) -> nn.Module:
    """Return the maps of some stages of a network of the `timm` package (extra `perceptual`).

    Args:
        name: as `timm.create_model` knows it.
        stages: numbers of its stages, counted from 0.
        path: file with its weights; None: fetched once.

    Raises:
        UserError: the package or the network is missing, or its weights are not to be had.
    """
    try:
        import timm

        return timm.create_model(
            name,
            pretrained=True,
            features_only=True,
            out_indices=[*stages],
            **({"pretrained_cfg_overlay": {"file": str(path)}} if path is not None else {}),
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"the network {name} needs timm: pip install 'var-toolkit[perceptual]', or take one of "
            "torchvision"
        ) from error
    except Exception as error:  # of the hub, safetensors, torch: all say that it is not to be had
        raise _lacking("timm", name, path, error) from error


def _lacking(library: str, name: str, path: str | Path | None, error: Exception) -> UserError:
    first = " ".join(str(error).split())[:200]
    remedy = "name a file with its weights, path=…" if path is None else f"is {path} its file?"
    return UserError(f"no weights for the network {name} of {library} ({first}): {remedy}")
