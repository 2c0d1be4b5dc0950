"""Any network of timm as a feature network: FD-DINOv2 and the like."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.errors import UserError
from var.metrics.networks import Seen


class Vision(nn.Module):
    """A network of timm, its features before the classifier.

    Args:
        model: the network, which has a `pretrained_cfg` and `num_features`.
        name: of the Frechet distance that it gives.
    """

    labelled = False

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        given = model.pretrained_cfg
        self.model, self.name, self.size = model, name, int(given["input_size"][-1])
        self.num_features = int(model.num_features)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(given[key])[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Seen:
        """Return the features (B, D) of images (B, 3, H, W) uint8, resized as the network asks."""
        x, side = image.float() / 255, (self.size, self.size)
        if tuple(image.shape[-2:]) != side:
            x = F.interpolate(x, side, mode="bicubic", antialias=True).clamp(0, 1)
        return Seen(self.model((x - self.mean) / self.std).float())


def vision(model: str, path: str | Path | None = None) -> Vision:
    """Return a network of timm by its name, as `vit_large_patch14_dinov2.lvd142m`.

    Args:
        model: its name.
        path: of its weights; None: they are fetched once.

    Raises:
        UserError: timm is missing, knows no such network, or cannot fetch its weights.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            "features=timm needs timm: pip install 'var-toolkit[perceptual]'"
        ) from error
    weights = {"pretrained_cfg_overlay": {"file": str(path)}} if path else {}
    try:
        made = timm.create_model(model, pretrained=True, num_classes=0, **weights)
    except Exception as error:  # of the hub, of files, or of timm
        raise UserError(f"features.model={model}: {str(error).splitlines()[0]}") from error
    return Vision(made.eval(), f"FD-{model}")
