"""`var-encode`: a cache of what a tokenizer makes of a data set, to train generators on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from var import hub
from var.bars import progress_bar
from var.data.images import ImageData, check_pixels
from var.data.index import NUMBERS, Index
from var.devices import PRECISIONS, share
from var.digests import fingerprint
from var.encoding import Encoder, Folder, number_type
from var.errors import UserError
from var.recipe import parse_schedule, written
from var.schedule import Schedule
from var.scripts.command import check_least, check_writable, command, made
from var.scripts.parts import check_sizes
from var.scripts.processes import placed
from var.store import Run
from var.tokenizers.tokenizer import Tokenizer
from var.training.parallel import alone, chosen
from var.unusable import UNUSABLE

log = logging.getLogger("var.scripts.encode")

_DTYPES = ("fp16", "fp32")


@dataclass
class Options:
    """The command's options and their types; `configs/encode.yaml` says what they mean."""

    tokenizer: dict[str, Any]
    files: str | None
    data: dict[str, Any]
    split: str
    schedule: Any
    flips: bool
    dtype: str
    shard_size: int
    batch_size: int
    device: str
    out: str
    progress: bool


@command("encode")
def main(cfg: DictConfig) -> None:
    """Write the cache that the configuration describes, shared out over all processes."""
    started = perf_counter()
    merged = OmegaConf.merge(OmegaConf.structured(Options), cfg)
    options = cast(Options, OmegaConf.to_object(merged))
    check(options)
    # The others wait while one looks at what is there already.
    device, state = placed(options.device, timedelta(days=1))
    bar, data = options.progress and state.is_main_process, images(options)
    centres = data.plain()  # before any is read: what is unusable is counted by shard
    run = hub.find(options.tokenizer["run"], device=device, files=options.files)
    encoder, index = prepare(options, run, data, device)
    folder = Folder(Path(options.out), index)
    state.wait_for_everyone()  # whoever looks at the folder has seen it as it was
    todo = list[int]()
    alone(lambda: todo.extend(folder.missing(bar)))
    todo = chosen(todo)
    mine = [todo[i] for i in share(len(todo), state.process_index, state.num_processes)]
    encode(encoder, centres, folder, mine, options.batch_size, bar)
    state.wait_for_everyone()
    alone(lambda: told(folder.finish(data.unusable), len(todo), perf_counter() - started, options))


def told(index: Index, made: int, seconds: float, options: Options) -> None:
    """Say what was made."""
    log.info(
        "%d codes, %d of %d shards made in %.1f s: %s",
        index.entries, made, len(index.shards), seconds, options.out,
    )  # fmt: skip
    if index.unusable:
        log.warning(
            "%d of %d images are unusable and left out, see %s",
            len(index.unusable), index.images, Path(options.out, UNUSABLE),
        )  # fmt: skip


def check(options: Options) -> None:
    """Check what can be checked before the tokenizer is loaded.

    Raises:
        UserError: a value makes no sense; the message names it.
    """
    check_least(options, {"shard_size": 1, "batch_size": 1})
    if options.dtype not in _DTYPES:
        raise UserError(f"dtype={options.dtype}: use {' or '.join(_DTYPES)}")
    check_writable(Path(options.out), f"out={options.out}")


def images(options: Options) -> ImageData:
    """Return the images to encode.

    Raises:
        UserError: there is no such split, or they are codes already.
    """
    if options.split not in ("train", "test") or options.split not in options.data:
        raise UserError(f"split={options.split}: use train or, where data has one, test")
    data: ImageData = made(options.data[options.split])
    check_pixels(data, "var-encode")
    return data


def prepare(
    options: Options, run: Run, data: ImageData, device: torch.device
) -> tuple[Encoder, Index]:
    """Return what encodes, and what the cache shall hold.

    Raises:
        UserError: the tokenizer does not serve this schedule, or these images.
    """
    tokenizer, schedule = cast(Tokenizer, run.tokenizer), run.recipe.schedule
    if options.schedule is not None:
        schedule = parse_schedule(options.schedule, "schedule")
        if schedule != run.recipe.schedule and not tokenizer.any_schedule:
            raise UserError(
                f"schedule={options.schedule} is not that of {options.tokenizer['run']}, "
                f"{run.recipe.schedule}: leave it out"
            )
    check_sizes(tokenizer, schedule, data)
    with torch.inference_mode():
        first = data.__getitems__([0]).to(device)
        code = tokenizer.compress(first.image, schedule)
        check_tokens(tokenizer.tokens(code, schedule), schedule)
    numbers = number_type(tokenizer, code, PRECISIONS[options.dtype])
    index = Index(
        data=data.name,
        split=options.split,
        source=data.digest(),
        size=data.size,
        classes=tuple(data.classes),
        images=len(data),
        flips=options.flips,
        shard_size=options.shard_size,
        numbers=str(numbers).removeprefix("torch."),
        shape=tuple(code.shape[1:]),
        grids=schedule.grids[:1] if schedule.is_raster else schedule.grids,
        raster=schedule.is_raster,
        tokenizer=fingerprint(run.tokenizer),
    )
    return Encoder(tokenizer, schedule, options.flips, numbers, device), index


def check_tokens(tokens: list[Tensor], schedule: Schedule) -> None:
    """Check that the tokens of an image are those of the groups of a schedule.

    Raises:
        UserError: they are not, as the tokenizer makes whole scales and these are single cells.
    """
    if tuple(each.shape[1] for each in tokens) != schedule.sizes:
        raise UserError(
            f"schedule={written(schedule)} is not for this tokenizer, which makes whole scales: "
            "use a ladder, as in schedule=[1,2,4,8], or take another tokenizer"
        )


def encode(
    encoder: Encoder, data: ImageData, folder: Folder, mine: list[int], batch_size: int, bar: bool
) -> None:
    """Make some shards of a cache."""
    parts = [folder.parts[number] for number in mine]
    each = 2 if encoder.flips else 1
    blank = torch.empty(0, *folder.index.shape, dtype=NUMBERS[folder.index.numbers])
    with progress_bar(total=sum(map(len, parts)), unit="image", shown=bar) as shown:
        for number, batches in zip(mine, encoder.shards(data, parts, batch_size), strict=True):
            codes, labels = [blank], [blank.new_empty(0, dtype=torch.int64)]
            known = len(data.unusable)
            for code, label in batches:
                codes.append(code)
                labels.append(label)
                shown.update(len(label) // each)
            unusable = list(data.unusable.items())[known:]
            shown.update(len(unusable))
            folder.add(number, torch.cat(codes), torch.cat(labels), unusable)


if __name__ == "__main__":
    main()
