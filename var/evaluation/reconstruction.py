"""Reconstructions of a tokenizer, and how near they are to the images, one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from var.bars import progress_bar
from var.data.batches import loader
from var.data.images import ImageData
from var.evaluation import scoring
from var.evaluation.parts import Parts
from var.evaluation.reference import Reference
from var.evaluation.scoring import Scores
from var.evaluation.subject import Notes, look
from var.judging import codebook, reconstruct
from var.metrics.networks import Network
from var.pipeline import Pipeline

Distance = Callable[[Tensor, Tensor], Tensor]
_EACH = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Reconstruction:
    """All images of a data set, made again.

    Attributes:
        pipe: whose tokenizer does it.
        data: without crops and flips; images that are unusable are left out.
        network: who looks at reconstructions; None: nobody.
        lpips: distances (B,) of images (B, 3, H, W) in [0, 1]; None: none are measured.
        ignored: files of the data set that are not counted among its images.
    """

    pipe: Pipeline
    data: ImageData
    network: Network | None
    lpips: Distance | None
    ignored: int = 0

    kind, needed = "reconstruction", ()

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.data)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.data.size

    def settings(self) -> dict[str, Any]:
        """Return what reconstructions depend on."""
        return {"data": {"sha256": self.data.version()}, "lpips": self.lpips is not None}

    def fill(self, parts: Parts, todo: Sequence[int], bar: bool) -> None:
        """Make parts: `label`, `psnr`, `ssim` and, if asked for, `lpips` (n,) each, what is seen.

        How often each code served, (1, K, V) of a part, is `codes`.
        """
        batches = loader(self.data, [list(parts.ranges[part]) for part in todo])
        shown = progress_bar(batches, total=len(todo), unit="batch", shown=bar)
        for part, (image, label) in zip(todo, shown, strict=True):
            found = self._near(image.to(self.pipe.device)) if len(label) else {}
            parts.add(part, {"label": label, **found}, images=len(label))

    @torch.inference_mode()
    def _near(self, image: Tensor) -> dict[str, Tensor]:
        again, codes = reconstruct(self.pipe.tokenizer, self.pipe.schedule, image)
        unit: dict[str, Any] = {"reduction": "none"}
        found: dict[str, Any] = {
            "psnr": peak_signal_noise_ratio(again, image, (0.0, 1.0), dim=(1, 2, 3), **unit),
            "ssim": structural_similarity_index_measure(again, image, data_range=1.0, **unit),
            "codes": codes.long()[None],
        }
        if self.lpips is not None:
            found["lpips"] = self.lpips(image, again)
        return found | ({} if self.network is None else look(again, self.network))

    def scores(
        self, found: Mapping[str, Tensor], reference: Reference | None, draws: int
    ) -> Scores:
        """Return means of PSNR in dB, SSIM, LPIPS, and Frechet distances (rFID)."""
        scores = {name: scoring.mean(found[name]) for name in _EACH if name in found}
        if self.network is None or reference is None:
            return scores
        seen = scoring.of_features(found, reference, self.network, draws)
        return scores | {{"FID": "rFID"}.get(name, name): each for name, each in seen.items()}

    def results(self, found: Mapping[str, Tensor], notes: Notes) -> dict[str, Any]:
        """Return how many images are unusable, and how codes are used, if there are any."""
        counts = found["codes"].sum(dim=0).float()
        unusable = {"unusable": self.ignored + self.count - len(found["label"])}
        return unusable | ({"codebook": codebook(counts)} if counts.shape[1] else {})
