"""The contract of what is measured: samples of a generator, reconstructions, or stored samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from var.errors import UserError
from var.evaluation.parts import Parts
from var.evaluation.reference import Reference
from var.evaluation.scoring import Scores
from var.metrics.networks import Network, exact
from var.pixels import to_uint8

Notes = Iterator[Mapping[str, float]]


class Subject(Protocol):
    """What is measured, image by image.

    Attributes:
        kind: `generation` or `reconstruction`.
        count: number of images.
        size: side of the images that are measured, in pixels.
        needed: tensors that a part must have besides.
    """

    kind: str

    @property
    def count(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def needed(self) -> Sequence[str]: ...

    def settings(self) -> dict[str, Any]:
        """Return all that decides what is found out of an image, as a report says it."""
        ...

    def fill(self, parts: Parts, todo: Sequence[int], bar: bool) -> None:
        """Make some parts, with a progress bar or without."""
        ...

    def scores(
        self, found: Mapping[str, Tensor], reference: Reference | None, draws: int
    ) -> Scores:
        """Return the scores of what was found out.

        Args:
            found: of all images, by name.
            reference: real images; None: there is nothing to compare with.
            draws: of the bootstrap that gives Frechet distances their spread.
        """
        ...

    def results(self, found: Mapping[str, Tensor], notes: Notes) -> dict[str, Any]:
        """Return what else a report has to say: speed, use of the codebook."""
        ...


@torch.inference_mode()
def look(
    image: Tensor, network: Network, size: int | None = None, *, keep: bool = False
) -> dict[str, Tensor]:
    """Return what a network sees in images, by the names of `Seen`.

    Args:
        image: (B, 3, H, W) in [0, 1].
        network: who looks.
        size: side in pixels to which they are resized first, bicubically and without antialiasing,
            as published for LlamaGen; None: they stay as they are.
        keep: return the images too, `image` (B, 3, H, W) uint8.

    Raises:
        UserError: a pixel is no number.
    """
    if not image.isfinite().all():  # as whole numbers they would be black
        raise UserError(
            "there are pixels that are no numbers: the model overflows, use precision=fp32 or bf16"
        )
    if size is not None and image.shape[-1] != size:
        image = F.interpolate(image, (size, size), mode="bicubic")
    whole = to_uint8(image)
    seen = exact(network, whole)
    found = {name: value for name, value in seen._asdict().items() if value is not None}
    return found | ({"image": whole} if keep else {})
