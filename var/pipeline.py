"""The pipeline: a model, its tokenizer and their settings, ready to make images.

What it adds to the one loop: labels by name, seeds, batches that fit into memory, a progress bar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack, cast

import torch
from torch import Tensor

from var import choices, fast, hub, sharing
from var.condition import Condition
from var.decoding.loop import decide
from var.drawing import Drawing
from var.errors import UserError
from var.heads.base import check_settings
from var.labels import Labels, class_ids
from var.models.base import Backbone
from var.random import Rng
from var.sampling import Sampling, Settings
from var.schedule import Schedule
from var.sharing import Form
from var.store import Run
from var.tokenizers.tokenizer import Canvas, Tokenizer


def load(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
    files: str | Path | None = None,
) -> Pipeline:
    """Return the pipeline of a run folder, a shipped name, a published name or a hub id.

    Args:
        name: what to look up, in this order.
        device: where the weights go.
        dtype: of the generator and of the decoding of pixels; codes are in float32 always.
        compile: compile the generator's steps; on CUDA capture them, per decoding with a static
            cache: `decoding=var.Sequential(pipe.model)`, held from call to call, keeps them.
        files: folder that is looked into for the files of published checkpoints before the hub is.

    Raises:
        UserError: there is nothing of that name, or what is there is damaged.
    """
    run = hub.find(name, device=device, dtype=dtype, files=files)
    fast.speed_up(run.model, compile=compile)
    return Pipeline(run, compile=compile, files=files)


class Pipeline:
    """Makes images of a run.

    Args:
        run: model, tokenizer and recipe; `var.load` finds one by name, and makes it fast.
        compile, files: for its companions, and what is moved, see `load`.

    >>> pipe = var.load("fashion-var")                                      # doctest: +SKIP
    >>> images = pipe(labels=[0, "sneaker"], seed=0, guidance=1.5)          # doctest: +SKIP
    """

    def __init__(self, run: Run, *, compile: bool = False, files: str | Path | None = None) -> None:
        self.run, self.compile, self.files = run, compile, files
        self.companions: dict[str, Pipeline] = {}  # by name: those that work along with this one

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Pixels to tokens and back; its pixels in the precision of the generator."""
        return cast(Tokenizer, fast.fast_tokenizer(self.run.tokenizer, self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the generator; float32 if there is none."""
        model = self.run.model
        return torch.float32 if model is None else next(model.parameters()).dtype

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
        return int((self.run.recipe.backbone or {}).get("classes") or len(self.classes))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.run.tokenizer.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; return the pipeline itself."""
        for module in (self.run.tokenizer, self.run.model):
            if module is not None:
                module.to(device)
        self.__dict__.pop("tokenizer", None)  # its fast twin is made anew
        fast.speed_up(self.run.model, compile=self.compile)
        for other in self.companions.values():
            other.to(device)
        return self

    def companion(self, name: str) -> Pipeline:
        """Return the pipeline of another run, loaded once, on this one's device and of its type.

        Raises:
            UserError: there is no generator of that name, or it is of another tokenizer.
        """
        if name not in self.companions:
            run = hub.companion(
                self.run, name, device=self.device, dtype=self.dtype, files=self.files
            )
            fast.speed_up(run.model, compile=self.compile)
            self.companions[name] = Pipeline(run, compile=self.compile, files=self.files)
        return self.companions[name]

    def settings(self, **changes: Unpack[Settings]) -> Sampling:
        """Return the sampling settings of the run, with those changes that are not None.

        Raises:
            ValueError: a value is out of range.
            UserError: a setting means nothing to this model, or a list is of the wrong length.
        """
        given = {k: value for k, value in changes.items() if value is not None}
        sampling = replace(self.run.recipe.sampling, **cast(Any, given))
        try:
            sampling.check(len(self.schedule))
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.run.model is not None:
            check_settings(self.model.head, given, sampling)
        return sampling

    def ids(self, labels: Labels) -> list[int]:
        """Return the class ids of labels: ids, names in any case, None or -1 for no class.

        Raises:
            UserError: there is no such class.
        """
        return class_ids(labels, classes=self.classes, count=self.class_count)

    def condition(self, labels: Labels | Condition) -> Condition:
        """Return the condition of labels, see `ids`, on the device; or the one that is given."""
        if not isinstance(labels, Condition):
            labels = Condition(torch.tensor(self.ids(labels), dtype=torch.int64))
        return labels.to(self.device)

    def __call__(
        self,
        labels: Labels | Condition = None,
        *,
        seed: int = 0,
        number: int = 1,
        decoding: choices.Choice = None,
        cache: choices.CacheChoice = None,
        edit: choices.EditChoice = None,
        batch_size: int = 32,
        progress: bool = False,
        **settings: Unpack[Settings],
    ) -> Tensor:
        """Return images (B, 3, H, W) float32 in [0, 1], B = labels x number.

        Image i is drawn from the random stream `seed + i`: it does not depend on the images beside
        it, on `batch_size`, or on how many there are.

        Args:
            labels: classes as ids or names; None and -1 stand for none. Or a condition.
            seed: of the first image, 0 or more.
            number: images per label, next to each other.
            decoding: who predicts and what is kept: a name (`var.choices.DECODINGS`), a mapping of
                its `name` and settings, or a decoding; by default what the run recommends.
            cache: what the decoding remembers with, likewise (`var.choices.CACHES`), or what makes
                one (`CacheKind`); by default what suits the model.
            edit: an image to begin with, and what stays of it: see `var.edits`, by name as well.
            batch_size: images at a time; halved as often as needed when memory runs out.
            progress: show a bar over all groups of all images.
            settings: see `Sampling`; by default what the run recommends.

        Raises:
            UserError: unknown class or cache, no label at all, no generator, an edit that is not
                for this model, or no memory for a single image.
            ValueError: a setting is out of range.
        """
        condition = self.condition(labels).each(max(0, number))
        if not len(condition):
            raise UserError("there is nothing to draw: no labels, or none of each")
        images = self.batches(
            condition,
            range(seed, seed + len(condition)),
            sampling=self.settings(**settings),
            decoding=decoding,
            cache=cache,
            edit=edit,
            batch_size=batch_size,
            progress=progress,
        )
        return torch.cat(list(images))[:, -1]

    def steps(
        self,
        labels: Labels | Condition = None,
        *,
        seed: int | Sequence[int] = 0,
        decoding: choices.Choice = None,
        cache: choices.CacheChoice = None,
        edit: choices.EditChoice = None,
        **settings: Unpack[Settings],
    ) -> Iterator[Canvas]:
        """Yield the canvas of one batch after each turn; see a call. Each may have its seed."""
        condition = self.condition(labels)
        seeds = range(seed, seed + len(condition)) if isinstance(seed, int) else seed
        return decide(
            choices.edited(self, edit),
            self.schedule,
            condition,
            choices.decoding(self, decoding),
            self.settings(**settings),
            Rng(seeds, self.device),
            cache=choices.cache(self, cache),
        )

    @torch.inference_mode()
    def decode(self, canvas: Canvas, edit: choices.EditChoice = None) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1] of what is decided so far, pasted by `edit`."""
        return choices.edited(self, edit).decode(canvas).float()

    def batches(
        self,
        ids: Sequence[int] | Condition,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        decoding: choices.Choice = None,
        cache: choices.CacheChoice = None,
        edit: choices.EditChoice = None,
        batch_size: int = 32,
        progress: bool = False,
        steps: bool = False,
    ) -> Iterator[Tensor]:
        """Yield images (b, S, 3, H, W) batch by batch: for more of them than memory holds.

        Args:
            ids: class id of each image, -1 for none; or a condition.
            seeds: random stream of each image, each 0 or more.
            sampling, decoding, cache, edit, batch_size, progress: see `settings` and a call.
            steps: show each image after every turn, S of them, instead of the last only, S = 1.

        Raises:
            UserError: no memory for a single image, or a number out of range.
        """
        drawing = Drawing(
            tokenizer=choices.edited(self, edit),
            schedule=self.schedule,
            sampling=sampling,
            decoding=choices.decoding(self, decoding),
            cache=choices.cache(self, cache),
            device=self.device,
            steps=steps,
        )
        return drawing.batches(ids, seeds, batch_size=batch_size, progress=progress)

    def save(self, folder: str | Path, **form: Unpack[Form]) -> None:
        """Write everything that `var.load` needs, and a card unless the folder has one.

        Raises:
            UserError: unknown layout, or the folder cannot be written.
        """
        sharing.save(folder, self.run, **form)

    def push_to_hub(self, repository: str, *, private: bool = False, **form: Unpack[Form]) -> str:
        """Upload what `save` writes to `owner/name` on the Hugging Face hub; return its address.

        Raises:
            UserError: unknown layout; the hub refuses, or cannot be reached.
        """
        return sharing.push(self.run, repository, private=private, **form)
