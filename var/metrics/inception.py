"""Inception as FID was defined with it: the network of 2015, converted by torch-fidelity."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from var.errors import UserError
from var.metrics.networks import Seen

_CHANNELS = 7  # of `mixed_6/conv`, whose 17x17 places make the spatial features of sFID


class Inception(nn.Module):
    """Inception-v3 of 2015, images enlarged to 299x299 as TensorFlow 1 did.

    Features are the 2048 of the last pooling, logits those without a bias, spatial features the
    first 7 channels of `mixed_6/conv`: what OpenAI's evaluation of guided diffusion takes.

    Args:
        state: weights under torch-fidelity's names.
    """

    name, num_features, labelled = "FID", 2048, False

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        # The extractor opens a file of its own accord, as a pickle: it is given one made here.
        blob = io.BytesIO()
        torch.save(state, blob)
        blob.seek(0)
        self.extractor: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=blob
        )
        self._places: list[Tensor] = []
        branch: Any = self.extractor.get_submodule("Mixed_6d.branch1x1")
        branch.register_forward_hook(lambda module, given, out: self._places.append(out))

    def forward(self, image: Tensor) -> Seen:
        """Return features (B, 2048), logits (B, 1008) and spatial (B, 2023) of uint8 images."""
        features, logits = self.extractor(image)
        places = self._places.pop()[:, :_CHANNELS]
        return Seen(features, logits, places.permute(0, 2, 3, 1).flatten(1))


def inception(path: str | Path | None = None) -> Inception:
    """Return the network with the weights of a file, or with those released, fetched once.

    Args:
        path: of `weights-inception-2015-12-05-6726825d.pth`, or the same as safetensors.

    Raises:
        UserError: there is no such file, it cannot be fetched, or it holds another network.
    """
    try:
        return Inception(_state(path)).eval()
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path or URL_INCEPTION_V3} is not that Inception: {reason}") from error


def _state(path: str | Path | None) -> dict[str, Tensor]:
    if path is None:
        try:
            fetch: Any = torch.hub.load_state_dict_from_url
            return fetch(URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True)
        except (URLError, OSError) as error:
            raise UserError(
                f"cannot fetch the Inception of FID ({error}): download {URL_INCEPTION_V3} by "
                "hand, and set features.path to the file"
            ) from error
    if not Path(path).is_file():
        raise UserError(f"no Inception at {path}: set features.path to its file")
    if Path(path).suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles fail in many ways
        raise UserError(f"{path} holds no weights: {str(error).splitlines()[0]}") from error
