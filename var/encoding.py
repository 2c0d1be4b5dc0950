"""Writing a cache of a data set: shard by shard, by one process or many, killed or not.

What is finished is noted below `.progress`, with its checksum; a run that comes after makes the
rest. `cache.yaml` is written last, and with it `.progress` goes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from var.atomic import write_bytes
from var.data.batches import loader
from var.data.images import Batch, ImageData
from var.data.index import INDEX, NUMBERS, PROGRESS, Index, Shard
from var.data.latents import check_shards
from var.devices import pieces
from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer
from var.unusable import UNUSABLE, write_unusable

_SETTINGS = "settings.yaml"


class Folder:
    """The folder of a cache that is being written.

    Args:
        root: the folder; made if it is not there.
        index: what shall be in it; its shards are of no account.

    Raises:
        UserError: it holds a cache of other settings.
    """

    def __init__(self, root: Path, index: Index) -> None:
        self.root, self.index = root, replace(index, shards=())
        self.progress = root / PROGRESS
        for path in (root / INDEX, self.progress / _SETTINGS):
            if path.is_file():
                there = Index.parse(path.read_text(encoding="utf-8"), str(path))
                if odd := there.differences(index):
                    raise UserError(
                        f"{root} holds a cache of other settings ({odd[0]}): choose another "
                        "out=…, or delete it"
                    )

    @property
    def parts(self) -> list[range]:
        """The images of each shard."""
        return pieces(self.index.images, self.index.shard_size)

    def missing(self, progress: bool = True) -> list[int]:
        """Return which shards are still to be made, or to be made again as they are damaged."""
        write_bytes(self.progress / _SETTINGS, self.index.text().encode())
        noted = self._noted()
        damaged = {shard.file for shard in check_shards(self.root, list(noted.values()), progress)}
        good = noted.keys() - damaged
        return [i for i in range(len(self.parts)) if _name(i) not in good]

    def add(
        self, number: int, code: Tensor, label: Tensor, unusable: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write shard `number`: codes (n, ...), labels (n,), and what images it lacks, and why.

        Raises:
            UserError: it cannot be written.
        """
        blob = save({"code": code.contiguous(), "label": label.contiguous()})
        write_bytes(self.root / _name(number), blob)
        checksum = hashlib.sha256(blob).hexdigest()
        shard = Shard(_name(number), len(label), checksum, tuple(unusable))
        write_bytes(self._note(number), yaml.safe_dump(shard.plain()).encode())

    def finish(self, unusable: Mapping[str, str] = MappingProxyType({})) -> Index:
        """Write the index of a folder of which no shard is missing, and return it.

        Files that are `unusable`, beside those of the shards, are listed with them.
        """
        noted = self._noted()
        if lost := [_name(i) for i in range(len(self.parts)) if _name(i) not in noted]:
            raise UserError(
                f"{self.root} lacks {lost[0]} and {len(lost) - 1} more when all is done: "
                "out must be a folder that all processes share"
            )
        shards = tuple(noted[_name(i)] for i in range(len(self.parts)))
        index = replace(self.index, shards=shards)
        if every := {**unusable, **index.unusable}:
            write_unusable(self.root / UNUSABLE, every)
        write_bytes(self.root / INDEX, index.text().encode())
        shutil.rmtree(self.progress, ignore_errors=True)
        return index

    def _noted(self) -> dict[str, Shard]:
        """Return what is said to be finished, by file name: the newest word counts."""
        path, noted = self.root / INDEX, dict[str, Shard]()
        if path.is_file():
            index = Index.parse(path.read_text(encoding="utf-8"), str(path))
            noted = {shard.file: shard for shard in index.shards}
        for note in map(self._note, range(len(self.parts))):
            if note.is_file():
                shard = Shard.parse(yaml.safe_load(note.read_text(encoding="utf-8")))
                noted[shard.file] = shard
        return noted

    def _note(self, number: int) -> Path:
        return self.progress / f"{number:05d}.yaml"


@dataclass(frozen=True)
class Encoder:
    """What makes codes of images.

    Attributes:
        tokenizer: frozen, on `device`.
        schedule: for which it compresses.
        flips: make a second code of each image, mirrored.
        numbers: type of the codes.
        device: where the tokenizer is.
    """

    tokenizer: Tokenizer
    schedule: Schedule
    flips: bool
    numbers: torch.dtype
    device: torch.device

    @torch.inference_mode()
    def codes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return codes (n, ...) and labels (n,), on the CPU; with flips those of an image in turn.

        Raises:
            UserError: a value is too large for the type of numbers, or none at all.
        """
        image, label = batch.to(self.device)
        views = [image, image.flip(-1)] if self.flips else [image]
        exact = torch.stack([self.tokenizer.compress(view, self.schedule) for view in views], 1)
        code = exact.flatten(0, 1).to(self.numbers)
        if code.is_floating_point() and not code.isfinite().all():
            largest = exact.abs().max()
            raise UserError(
                f"a code of {largest:.3g} is too large for {self.numbers}: use dtype=fp32"
                if exact.isfinite().all()
                else "the tokenizer made a code that is not finite: it is not fit for use"
            )
        return code.cpu(), label.repeat_interleave(len(views)).cpu()

    def shards(
        self, data: ImageData, parts: Sequence[range], batch_size: int
    ) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Yield for each part of the data its codes and labels, batch by batch.

        Batches begin with a part, so that a part's codes do not depend on what else is made. Those
        of which all images are unusable are left out.
        """
        lists = [_lists(part, batch_size) for part in parts]
        batches = loader(data, [numbers for part in lists for numbers in part])
        for part in lists:
            yield (self.codes(batch) for batch in islice(batches, len(part)) if len(batch.label))


def number_type(tokenizer: Tokenizer, code: Tensor, floats: torch.dtype) -> torch.dtype:
    """Return the type to keep codes in: the smallest that holds all ids; for values `floats`."""
    if code.is_floating_point():
        return floats
    top = tokenizer.terms.get("vocabulary", 1 << 31) - 1
    whole = [kind for kind in NUMBERS.values() if not kind.is_floating_point]
    return next(kind for kind in whole if top <= torch.iinfo(kind).max)


def _lists(part: range, size: int) -> list[list[int]]:
    return [list(part[i : i + size]) for i in range(0, len(part), size)]


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"
