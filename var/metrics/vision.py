"""Any network of timm as a feature network: FD-DINOv2 and the like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.errors import UserError
from var.metrics.networks import Seen


class Vision(nn.Module):
    """A network of timm, its features before the classifier.

    Args:
        model: the network, which has a `pretrained_cfg` and `num_features`.
        name: its name; with the size it is that of the Frechet distance.
        size: side of the images that it gets, in pixels; None: that it was trained with.
    """

    labelled = False
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, name: str, size: int | None = None) -> None:
        super().__init__()
        given = model.pretrained_cfg
        self.model, self.size = model, size or int(given["input_size"][-1])
        self.name = f"FD-{name}-{self.size}"
        self.num_features = int(model.num_features)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(given[key])[:, None, None], persistent=False)

    def extra_repr(self) -> str:
        """Return what decides what it sees, besides weights and buffers."""
        return f"size={self.size}"

    def forward(self, image: Tensor) -> Seen:
        """Return the features (B, D) of images (B, 3, H, W) uint8, resized as the network asks."""
        x, side = image.float() / 255, (self.size, self.size)
        if tuple(image.shape[-2:]) != side:
            x = F.interpolate(x, side, mode="bicubic", antialias=True).clamp(0, 1)
        return Seen(self.model((x - self.mean) / self.std).float())


def vision(model: str, path: str | Path | None = None, size: int | None = None) -> Vision:
    """Return a network of timm by its name, as `vit_large_patch14_dinov2.lvd142m`.

    Args:
        model: its name.
        path: of its weights; None: they are fetched once.
        size: side of the images that it gets, in pixels; None: that it was trained with. Not all
            networks take another one.

    Raises:
        UserError: timm is missing, knows no such network, or cannot fetch its weights.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            "features=timm needs timm: pip install 'var-toolkit[perceptual]'"
        ) from error
    weights: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(path)}} if path else {}
    if size is not None:
        weights["img_size"] = size
    try:
        made = timm.create_model(model, pretrained=True, num_classes=0, **weights)
    except Exception as error:  # of the hub, of files, or of timm
        raise UserError(f"features.model={model}: {str(error).splitlines()[0]}") from error
    return Vision(made.eval(), model, size)
