"""The pipeline: a model, its tokenizer and their settings, ready to make images.

Above all other pieces; what it adds to the one loop is labels by name, seeds, batches that fit into
memory, and a progress bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast

import torch
from torch import Tensor

from var import hub, store
from var.cache.base import Cache
from var.cache.dense import Dense
from var.cache.static import Static
from var.decoding.base import Decoding
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.drawing import Drawing
from var.errors import UserError
from var.labels import Label, class_ids
from var.models.base import Backbone
from var.random import Rng
from var.sampling import Condition, Sampling
from var.schedule import Schedule
from var.store import Run
from var.tokenizers.tokenizer import Canvas, Tokenizer

CacheKind = Callable[[int], Cache]
CACHES: dict[str, CacheKind] = {"dense": Dense, "static": Static}


class Settings(TypedDict, total=False):
    """Sampling settings by name, see `Sampling`; None takes what the run recommends."""

    guidance: float | tuple[float, float] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    smooth: bool | None


def load(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    files: str | Path | None = None,
) -> Pipeline:
    """Return the pipeline of a run folder, a shipped name, a published name or a hub id.

    Args:
        name: what to look up, in this order.
        device: where the weights go.
        dtype: of the generator; the tokenizer is float32 always.
        files: folder that is looked into for the files of published checkpoints before the hub is.

    Raises:
        UserError: there is nothing of that name, or what is there is damaged.
    """
    return Pipeline(hub.find(name, device=device, dtype=dtype, files=files))


class Pipeline:
    """Makes images of a run.

    Args:
        run: model, tokenizer and recipe; `var.load` finds one by name.

    >>> pipe = var.load("fashion-var")                                      # doctest: +SKIP
    >>> images = pipe(labels=[0, "sneaker"], seed=0, guidance=1.5)          # doctest: +SKIP
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def tokenizer(self) -> Tokenizer:
        """Pixels to tokens and back."""
        return cast(Tokenizer, self.run.tokenizer)

    @property
    def model(self) -> Backbone:
        """The generator.

        Raises:
            UserError: the run is a tokenizer alone.
        """
        if self.run.model is None:
            raise UserError("this run is a tokenizer without a generator: it cannot make images")
        return cast(Backbone, self.run.model)

    @property
    def schedule(self) -> Schedule:
        """The groups in which images are decided."""
        return self.run.recipe.schedule

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by id; empty if they have none."""
        return self.run.recipe.data.classes

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return int((self.run.recipe.backbone or {}).get("classes", len(self.classes)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.run.tokenizer.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; return the pipeline itself."""
        for module in (self.run.tokenizer, self.run.model):
            if module is not None:
                module.to(device)
        return self

    def settings(self, **changes: Unpack[Settings]) -> Sampling:
        """Return the sampling settings of the run, with those changes that are not None.

        Raises:
            ValueError: a value is out of range.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self.run.recipe.sampling, **cast(dict[str, Any], given))

    def ids(self, labels: Iterable[Label] | Label) -> list[int]:
        """Return the class ids of labels: ids, names in any case, None or -1 for no class.

        Raises:
            UserError: there is no such class.
        """
        several = isinstance(labels, Iterable) and not isinstance(labels, str)
        each = cast(Iterable[Label], labels if several else [labels])
        return class_ids(each, classes=self.classes, count=self.class_count)

    def __call__(
        self,
        labels: Iterable[Label] | Label = None,
        *,
        seed: int = 0,
        number: int = 1,
        decoding: Decoding | None = None,
        cache: str | CacheKind = "static",
        batch_size: int = 32,
        progress: bool = False,
        **settings: Unpack[Settings],
    ) -> Tensor:
        """Return images (B, 3, H, W) float32 in [0, 1], B = labels x number.

        Image i is drawn from the random stream `seed + i`: it does not depend on the images beside
        it, on `batch_size`, or on how many there are.

        Args:
            labels: classes as ids or names; None and -1 stand for none.
            seed: of the first image, 0 or more.
            number: images per label, next to each other.
            decoding: who predicts and what is kept; by default this model, group by group.
            cache: of the default decoding: "static", "dense", or what makes one for a number of
                layers.
            batch_size: images at a time; halved as often as needed when memory runs out.
            progress: show a bar over all groups of all images.
            settings: guidance, temperature, top_k, top_p and smooth, see `Sampling`; by default
                what the run recommends.

        Raises:
            UserError: unknown class or cache, no label at all, no generator, or no memory for a
                single image.
            ValueError: a setting is out of range.
        """
        ids = [label for label in self.ids(labels) for _ in range(number)]
        if not ids:
            raise UserError("there is nothing to draw: no labels, or none of each")
        images = self.batches(
            ids,
            range(seed, seed + len(ids)),
            sampling=self.settings(**settings),
            decoding=self.sequential(cache) if decoding is None else lambda: decoding,
            batch_size=batch_size,
            progress=progress,
        )
        return torch.cat(list(images))[:, -1]

    def steps(
        self,
        labels: Iterable[Label] | Label = None,
        *,
        seed: int = 0,
        decoding: Decoding | None = None,
        cache: str | CacheKind = "static",
        **settings: Unpack[Settings],
    ) -> Iterator[Canvas]:
        """Yield the canvas of one batch after each turn, coarse to fine; `decode` shows it.

        The arguments are those of a call.
        """
        ids = self.ids(labels)
        return decide(
            self.tokenizer,
            self.schedule,
            Condition(torch.tensor(ids, dtype=torch.int64, device=self.device)),
            self.sequential(cache)() if decoding is None else decoding,
            self.settings(**settings),
            Rng.batch(seed, len(ids), self.device),
        )

    @torch.inference_mode()
    def decode(self, canvas: Canvas) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1] of what is decided so far."""
        return self.tokenizer.decode(canvas).float()

    def sequential(self, cache: str | CacheKind = "static") -> Callable[[], Decoding]:
        """Return what makes the default decoding, with a cache of the given kind.

        Raises:
            UserError: unknown cache, or no generator.
        """
        if isinstance(cache, str) and cache not in CACHES:
            raise UserError(f"unknown cache {cache!r}: there are {', '.join(CACHES)}")
        kind = CACHES[cache] if isinstance(cache, str) else cache
        model = self.model
        return lambda: Sequential(model, model.new_cache(kind))

    def batches(
        self,
        ids: Sequence[int],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        decoding: Callable[[], Decoding] | None = None,
        batch_size: int = 32,
        progress: bool = False,
        steps: bool = False,
    ) -> Iterator[Tensor]:
        """Yield images (b, S, 3, H, W) batch by batch: for more of them than memory holds.

        Args:
            ids: class id of each image, -1 for none.
            seeds: random stream of each image, each 0 or more.
            sampling: how tokens are drawn.
            decoding: makes a decoding, anew for each batch; `sequential()` by default.
            batch_size: images at a time, at most.
            progress: show a bar.
            steps: show each image after every turn, S of them, instead of the last only, S = 1.

        Raises:
            UserError: no memory for a single image, or a number out of range.
        """
        drawing = Drawing(
            tokenizer=self.tokenizer,
            schedule=self.schedule,
            sampling=sampling,
            decoding=decoding or self.sequential(),
            device=self.device,
            steps=steps,
        )
        return drawing.batches(ids, seeds, batch_size=batch_size, progress=progress)

    def save(self, folder: str | Path) -> None:
        """Write the run folder: everything that `var.load` needs.

        Raises:
            UserError: the folder cannot be written.
        """
        store.save(folder, self.run)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the run to `owner/name` on the Hugging Face hub; return its address.

        Raises:
            UserError: the hub refuses, or cannot be reached.
        """
        return hub.push(self.run, repository, private=private)
