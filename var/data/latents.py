"""Caches of what a tokenizer makes of a data set: a folder that is read in place of the images.

`cache.yaml` says what is in it, and is written last; shards `00000.safetensors`, … hold the tensors
`code` (n, ...) and `label` (n,). They are mapped into memory, not loaded. `var-encode` writes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from var.bars import progress_bar
from var.data.images import Batch, Images
from var.data.index import AGAIN, INDEX, NUMBERS, Index, Shard, read_index
from var.digests import checksum, fingerprint
from var.errors import UserError
from var.schedule import Schedule
from var.tokenizers.around import Precompressed
from var.tokenizers.tokenizer import Tokenizer


class Latents(Images):
    """A data set of codes, and of no pixels: a generator trains on it without an encoder.

    Args:
        root: folder of the cache.
        index: of the cache.
        workers: processes that a loader shall read with.
    """

    codes = True

    def __init__(self, root: Path, index: Index, workers: int = 0) -> None:
        self.root, self.index, self.workers = root, index, workers
        self.name, self.classes, self.size = index.data, index.classes, index.size
        self.stops = torch.tensor([shard.count for shard in index.shards]).cumsum(0)
        self._open: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.index.entries

    def digest(self) -> str:
        """Return the sha256 of the index, which has those of all files."""
        return hashlib.sha256(self.index.text().encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # What is mapped stays with the process that did it.
        return {**self.__dict__, "_open": {}}

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        entry = torch.as_tensor(numbers) % len(self)
        shard = torch.searchsorted(self.stops, entry, right=True)
        code = torch.empty(len(entry), *self.index.shape, dtype=NUMBERS[self.index.numbers])
        label = torch.empty(len(entry), dtype=torch.int64)
        for which in shard.unique().tolist():
            codes, labels = self._mapped(which)
            row, place = entry - self.stops[which] + len(labels), shard == which
            code[place], label[place] = codes[row[place]], labels[row[place]]
        return Batch(code.float() if code.is_floating_point() else code.long(), label)

    def reader(self, tokenizer: Tokenizer, schedule: Schedule) -> Tokenizer:
        """Return a tokenizer that takes codes for images.

        Raises:
            UserError: another one made them, or for another schedule.
        """
        ours, theirs = self.index.tokenizer, fingerprint(cast(nn.Module, tokenizer))
        if ours != theirs:
            raise UserError(
                f"{self.root} was made by another tokenizer ({ours[:8]}…, not {theirs[:8]}…): "
                "name that one, or make another cache with var-encode"
            )
        made = self.index.schedule
        if schedule != made and not (
            tokenizer.any_schedule and schedule.grids[-1] == made.grids[-1]
        ):
            raise UserError(
                f"{self.root} was made for {made}, not {schedule}: take its schedule, or make "
                "another cache with var-encode"
            )
        return Precompressed(tokenizer)  # pyright: ignore[reportReturnType]

    def _mapped(self, which: int) -> tuple[Tensor, Tensor]:
        if which not in self._open:
            shard = self.index.shards[which]
            path = self.root / shard.file
            try:
                with safe_open(path, framework="pt") as file:
                    code, label = file.get_tensor("code"), file.get_tensor("label")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
            if code.shape != (shard.count, *self.index.shape) or len(label) != shard.count:
                raise UserError(f"{path} does not fit {INDEX}: {AGAIN}")
            self._open[which] = code, label
        return self._open[which]


def latents(*, root: str | Path, verify: bool = True, workers: int = 0) -> Latents:
    """Return the cache in a folder.

    Args:
        root: the folder.
        verify: compare the checksums of all files, once on each machine.
        workers: processes that a loader shall read with.

    Raises:
        UserError: it is not there, not complete or damaged.
    """
    root = Path(root)
    index = read_index(root)
    for shard in index.shards:
        if not (root / shard.file).is_file():
            raise UserError(f"{root / shard.file} is missing: {AGAIN}")
    if verify and os.environ.get("LOCAL_RANK", "0") == "0":
        damaged = check_shards(root, index.shards)
        if damaged:
            raise UserError(f"{root / damaged[0].file} is damaged: {AGAIN}")
    return Latents(root, index, workers)


def check_shards(root: Path, shards: Sequence[Shard], progress: bool = True) -> list[Shard]:
    """Return those shards that are missing or have another checksum, with a bar over the bytes."""
    there = [shard for shard in shards if (root / shard.file).is_file()]
    total, bad = sum((root / shard.file).stat().st_size for shard in there), set(shards) - {*there}
    shown = progress and total > 0
    with progress_bar(total=total, desc="checking", unit="B", unit_scale=True, shown=shown) as bar:
        for shard in there:
            try:
                good = checksum(root / shard.file, bar.update) == shard.sha256
            except OSError:
                good = False
            if not good:
                bad.add(shard)
    return [shard for shard in shards if shard in bad]
