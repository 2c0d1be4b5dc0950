"""`var-sample`: images from a trained model, as PNGs that remember how they were made."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import var
from var.devices import parse_precision, precision_name, share
from var.editing import Edit
from var.errors import UserError
from var.labels import class_name
from var.pipeline import Pipeline, load
from var.pixels import to_uint8
from var.png import grid, save_png
from var.recipe import check_sampling
from var.scripts.command import (
    check_least,
    check_writable,
    command,
    made,
    named,
    named_decoding,
)
from var.scripts.processes import placed
from var.search import Search

log = logging.getLogger("var.scripts.sample")


@dataclass
class Options:
    """The command's options and their types; `configs/sample.yaml` says what they mean."""

    model: str
    files: str | None
    labels: Any
    number: int
    seed: int
    sampling: dict[str, Any]
    precision: str
    compile: bool
    device: str
    batch_size: int
    out: str
    grid: bool
    columns: int | None
    upscale: int
    steps: bool
    progress: bool
    cache: dict[str, Any]
    decoding: dict[str, Any]
    edit: dict[str, Any]
    search: dict[str, Any]
    image: str | None
    mask: str | None


@command("sample")
def main(cfg: DictConfig) -> None:
    """Draw what the configuration describes, shared out over all processes."""
    started = perf_counter()
    if not isinstance(cfg.steps, bool):
        raise UserError(
            f"steps={cfg.steps}: true shows how images form, false does not; "
            "the steps of a flow are sampling.steps"
        )
    merged = OmegaConf.merge(OmegaConf.structured(Options), cfg)
    options = cast(Options, OmegaConf.to_object(merged))
    out = output(cfg)
    check(options, out)
    edit, search = made(options.edit), made(options.search)  # now, as files may be missing
    device, state = placed(options.device)
    dtype = parse_precision(options.precision, device)
    pipe = load(
        options.model, device=device, dtype=dtype, compile=options.compile, files=options.files
    )
    job = Job(options, pipe, edit, search)
    mine = share(len(job.ids), state.process_index, state.num_processes)
    tiles: list[Tensor] = []
    for index, frames in zip(mine, job.images(mine, state.is_main_process), strict=True):
        if out.suffix != ".png":
            save_png(out / job.file_name(index), frames[-1], job.note(index))
        if out.suffix == ".png" or options.grid:
            tiles.extend(frames)
    tiles, seeds = gather_object(tiles), gather_object([job.seeds[index] for index in mine])
    if not state.is_main_process:
        return
    if tiles:
        sheet = out if out.suffix == ".png" else out / "grid.png"
        columns = options.columns or job.columns()
        sheet_pixels = grid(torch.stack(tiles), columns=columns, upscale=options.upscale)
        save_png(sheet, sheet_pixels, job.notes(seeds))
    log.info("%d images in %.1f s: %s", len(job.ids), perf_counter() - started, out)


class Job:
    """Which images to draw, and how.

    Args:
        options: of the command.
        pipe: what draws them.
        edit: what they begin with.
        search: how many candidates each has, of which the best is delivered.

    Attributes:
        seeds: random stream of each image; with a search, of those that are drawn.
    """

    def __init__(
        self,
        options: Options,
        pipe: Pipeline,
        edit: Edit | None = None,
        search: Search | None = None,
    ) -> None:
        self.options, self.pipe, self.edit, self.search = options, pipe, edit, search
        every = range(pipe.class_count) if edit is None and pipe.class_count else [-1]
        self.labels = pipe.ids(every if options.labels is None else options.labels)
        self.ids = [label for label in self.labels for _ in range(options.number)]
        if not self.ids:
            raise UserError("labels=[] names no class: there is nothing to draw")
        self.sampling = pipe.settings(**cast(Any, options.sampling))
        self.decoding = made(options.decoding)(pipe)
        self.cache = made(options.cache)(pipe)
        self.seeds = {} if search else {i: self._first(i) for i in range(len(self.ids))}

    def images(self, mine: range, bar: bool) -> Iterator[Tensor]:
        """Yield what the grid shows of each image, (S, 3, H, W) uint8: itself, or all its steps."""
        options, shown = self.options, self._found if self.search else self._drawn
        how: dict[str, Any] = {
            "sampling": self.sampling,
            "decoding": self.decoding,
            "cache": self.cache,
            "edit": self.edit,
            "batch_size": options.batch_size,
            "progress": options.progress and bar,
        }
        for images in shown(mine, how):
            yield from to_uint8(images.flatten(0, 1)).unflatten(0, images.shape[:2]).cpu()

    def _drawn(self, mine: range, how: dict[str, Any]) -> Iterator[Tensor]:
        """Yield images (b, S, 3, H, W) in [0, 1], all that are drawn."""
        ids, seeds = self.ids[mine.start : mine.stop], [self.seeds[i] for i in mine]
        return self.pipe.batches(ids, seeds, steps=self.options.steps, **how)

    def _found(self, mine: range, how: dict[str, Any]) -> Iterator[Tensor]:
        """Yield images (b, 1, 3, H, W) in [0, 1], the best of those drawn; note their seeds."""
        assert self.search is not None
        ids, done = self.ids[mine.start : mine.stop], mine.start
        firsts = [self._first(i) for i in mine]
        for best in self.search.batches(self.pipe, ids, firsts, **how):
            self.seeds |= enumerate(best.seeds[:, 0].tolist(), start=done)
            done += len(best.seeds)
            yield best.images

    def columns(self) -> int:
        """Return how many tiles stand side by side: a label, or an image's steps, in a row."""
        if self.options.steps:
            return len(self.pipe.schedule)
        if self.options.number > 1 and len(self.labels) > 1:
            return self.options.number
        return len(self.ids) if len(self.ids) <= 10 else math.ceil(math.sqrt(len(self.ids)))

    def file_name(self, index: int) -> str:
        """Return the file name of an image: its number and its class."""
        name = class_name(self.ids[index], self.pipe.classes)
        return f"{index:06d}_{re.sub(r'[^a-z0-9]+', '-', name.casefold()).strip('-')}.png"

    def note(self, index: int) -> dict[str, Any]:
        """Return what it takes to make an image again."""
        return {
            **self._common(self._first(index)),
            "labels": [self.ids[index]],
            "seed": self.seeds[index],
        }

    def notes(self, seeds: list[int]) -> dict[str, Any]:
        """Return what it takes to make the grid again; and, after a search, each image by itself.

        Args:
            seeds: of all images.
        """
        options = self.options
        return {
            **self._common(options.seed),
            "labels": self.labels,
            "number": options.number,
            **({"seeds": seeds} if self.search else {"seed": options.seed}),
        }

    def _first(self, index: int) -> int:
        """Return the random stream of an image, or of the first of its candidates."""
        return self.options.seed + index * (self.search.number if self.search else 1)

    def _common(self, first: int) -> dict[str, Any]:
        options, search = self.options, named(self.options.search)
        return {
            "version": var.__version__,
            "model": options.model,
            "sampling": self.sampling.heeded(self.pipe.model.head.heeds),
            "precision": precision_name(self.pipe.dtype),
            "decoding": named_decoding(options.decoding, self.pipe.run.recipe),
            "cache": named(options.cache),
            "edit": named(options.edit),
            "search": {**search, "seed": first} if self.search else search,
        }


def output(cfg: DictConfig) -> Path:
    """Return where to write: `out`, numbered in a sweep unless it tells the jobs apart itself."""
    out = Path(cfg.out)
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if not sweep or OmegaConf.is_interpolation(cfg, "out"):
        return out
    return out.with_stem(f"{out.stem}-{HydraConfig.get().job.num}")


def check(options: Options, out: Path) -> None:
    """Check what can be checked before the model is loaded.

    Raises:
        UserError: a number out of range, a file that is not asked for, or nothing can be written
            to `out`.
    """
    least = {"number": 1, "seed": 0, "batch_size": 1, "upscale": 1, "columns": 1}
    check_least(options, least)
    check_sampling(options.sampling)
    if options.steps and named(options.search)["name"] != "none":
        raise UserError("search delivers finished images: leave steps=true out")
    for name in ("image", "mask"):
        if getattr(options, name) is not None and name not in options.edit:
            kind = named(options.edit)["name"]
            raise UserError(
                f"{name}={getattr(options, name)} is of no use to edit={kind}: leave it out, or "
                "say edit=inpaint"
            )
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp"):
        raise UserError(f"out={out}: images are written as PNG; name a file *.png or a folder")
    check_writable(out.parent if out.suffix == ".png" else out, str(out))


if __name__ == "__main__":
    main()
