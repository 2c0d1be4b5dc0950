"""Samples of a generator, and what a network sees in them: as many of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from var.bench.stopwatch import finisher
from var.cache.base import CacheKind
from var.decoding.base import Decoding
from var.decoding.counted import Counted
from var.evaluation import scoring
from var.evaluation.parts import Parts
from var.evaluation.reference import Reference
from var.evaluation.scoring import Scores
from var.evaluation.subject import Notes, look
from var.metrics.networks import Network
from var.pipeline import Pipeline
from var.sampling import Sampling
from var.search import Search


@dataclass(frozen=True)
class Generation:
    """Samples of a generator.

    Attributes:
        pipe: who draws.
        network: who looks.
        per_class: samples of each class; image i of all has the random stream `seed + i`,
            the candidates of a search have as many as they are.
        seed: of the first.
        sampling, decoding, cache: see `Pipeline.batches`.
        search: of how many candidates each is the best; None: every one that is drawn counts.
        named: decoding, cache and search by name, with their settings.
        batch_size: images at a time, and of a part.
        resize: side in pixels to which images are resized, see `look`; None: as they are.
        keep: keep the images themselves.
    """

    pipe: Pipeline
    network: Network
    per_class: int
    seed: int
    sampling: Sampling
    decoding: Decoding
    cache: CacheKind
    search: Search | None
    named: Mapping[str, Mapping[str, Any]]
    batch_size: int
    resize: int | None = None
    keep: bool = False

    kind = "generation"

    @property
    def labels(self) -> list[int]:
        """Class of each sample, class by class."""
        # Models that know no classes make samples of none.
        every = range(self.pipe.class_count) or [-1]
        return [label for label in every for _ in range(self.per_class)]

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def settings(self) -> dict[str, Any]:
        """Return what samples depend on."""
        return {
            "per_class": self.per_class,
            "seed": self.seed,
            "sampling": self.sampling.heeded(self.pipe.model.head.heeds),
            **self.named,
        }

    @property
    def size(self) -> int:
        """Side of the images that are measured, in pixels."""
        return self.resize or self.pipe.schedule.grids[-1][0] * self.pipe.tokenizer.factor

    @property
    def needed(self) -> Sequence[str]:
        """The images, if they are to be kept."""
        return ("image",) if self.keep else ()

    def fill(self, parts: Parts, todo: Sequence[int], bar: bool) -> None:
        """Make parts: `label` (n,), `features` (n, D), what else is seen and, if kept, `image`.

        Beside each part is noted how many seconds it took, and how many calls of a model; not of
        the first of several, which pays for warming up.
        """
        labels, decoding = self.labels, Counted(self.decoding)
        numbers = [i for part in todo for i in parts.ranges[part]]
        batches = self._drawn([labels[i] for i in numbers], numbers, decoding, bar)
        groups = _grouped(batches, [len(parts.ranges[part]) for part in todo])
        finish = finisher(self.pipe.device)
        for turn, part in enumerate(todo):
            mine, start = parts.ranges[part], perf_counter()
            images = next(groups)
            finish()
            took = {"seconds": perf_counter() - start, "calls": decoding.runs[-1]}
            warm = took if turn or len(todo) == 1 else {}
            label = torch.tensor([labels[i] for i in mine])
            seen = look(images, self.network, self.resize, keep=self.keep)
            parts.add(part, {"label": label, **seen}, images=len(mine), **warm)

    def _drawn(
        self, labels: list[int], numbers: list[int], decoding: Decoding, bar: bool
    ) -> Iterator[Tensor]:
        """Yield samples (b, 3, H, W) of some numbers among all, batch by batch."""
        how: dict[str, Any] = {"sampling": self.sampling, "cache": self.cache, "progress": bar}
        how |= {"decoding": decoding, "batch_size": self.batch_size}
        if self.search is None:
            seeds = [self.seed + number for number in numbers]
            return (images[:, -1] for images in self.pipe.batches(labels, seeds, **how))
        firsts = [self.seed + number * self.search.number for number in numbers]
        found = self.search.batches(self.pipe, labels, firsts, **how)
        return (best.images[:, 0] for best in found)

    def scores(
        self, found: Mapping[str, Tensor], reference: Reference | None, draws: int
    ) -> Scores:
        """Return Frechet distances, precision, recall and, where classes are told, agreement."""
        assert reference is not None
        scores = scoring.of_features(found, reference, self.network, draws)
        logits, label = found.get("logits"), found["label"]
        known = logits is not None and logits.shape[1] == self.pipe.class_count
        if self.network.labelled and known and label.min() >= 0:
            scores["label_agreement"] = scoring.agreement(found["logits"], label)
        return scores

    def results(self, found: Mapping[str, Tensor], notes: Notes) -> dict[str, Any]:
        """Return images per second of a process, and calls of a model per batch."""
        warm = [note for note in notes if "seconds" in note]
        if not warm:
            return {}
        drawn, seconds = (sum(note[name] for note in warm) for name in ("images", "seconds"))
        calls = sum(note["calls"] for note in warm) / len(warm)
        speed = {"images_per_second": round(drawn / seconds, 2), "calls_per_batch": round(calls, 2)}
        return {"speed": speed}


def _grouped(batches: Iterator[Tensor], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield finished images in groups of so many: batches are halved where memory runs out."""
    images: list[Tensor] = []
    for size in sizes:
        while sum(map(len, images)) < size:
            images.append(next(batches))
        whole = torch.cat(images)
        images = [whole[size:]]
        yield whole[:size]
