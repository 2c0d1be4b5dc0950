"""Caches of what a tokenizer makes of a data set: a folder that is read in place of the images.

`cache.yaml` says what is in it, and is written last; shards `00000.safetensors`, … hold the tensors
`code` (n, ...) and `label` (n,). They are mapped into memory, not loaded. `var-encode` writes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from var.data.images import Batch, Images
from var.errors import UserError
from var.schedule import Grid, Schedule
from var.tokenizers.around import Precompressed
from var.tokenizers.tokenizer import Tokenizer

INDEX, FORMAT = "cache.yaml", 1
PROGRESS = ".progress"  # folder with what is done so far, until there is a `cache.yaml`
NUMBERS = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.uint8, torch.int16, torch.int32, torch.float16, torch.float32)
}
_AGAIN = "run var-encode again with the same settings, it makes what is missing"


@dataclass(frozen=True)
class Shard:
    """A file of entries.

    Attributes:
        file: its name.
        count: entries in it.
        sha256: of its bytes.
    """

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What is in a cache.

    Attributes:
        data: name of the data set.
        split: of it.
        source: digest of the data set, see `ImageData.digest`.
        size: side of its images in pixels.
        classes: their names.
        images: number of images.
        flips: whether each is there twice, as entries 2 i (plain) and 2 i + 1 (mirrored).
        shard_size: images in a shard.
        numbers: type of the codes, one of `NUMBERS`.
        shape: of a code.
        grids: of the schedule that they were made for.
        tokenizer: fingerprint of what made them.
        shards: in the order of the entries.
    """

    data: str
    split: str
    source: str
    size: int
    classes: tuple[str, ...]
    images: int
    flips: bool
    shard_size: int
    numbers: str
    shape: tuple[int, ...]
    grids: tuple[Grid, ...]
    tokenizer: str
    shards: tuple[Shard, ...] = ()

    @classmethod
    def parse(cls, text: str, where: str) -> Index:
        """Return the index in a YAML text; `where` names it in messages.

        Raises:
            UserError: it is none, or one of another version.
        """
        try:
            plain: dict[str, Any] = dict(yaml.safe_load(text))
            version = plain.pop("format")
            if version != FORMAT:
                raise UserError(
                    f"{where} is of format {version}, and this version of var reads {FORMAT}: "
                    "make the cache again with var-encode"
                )
            plain["classes"] = tuple(map(str, plain["classes"]))
            plain["shape"] = tuple(map(int, plain["shape"]))
            plain["grids"] = tuple((int(h), int(w)) for h, w in plain["grids"])
            plain["shards"] = tuple(Shard(**shard) for shard in plain["shards"])
            index, _ = cls(**plain), NUMBERS[plain["numbers"]]
            return index
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{where} is damaged ({reason}): delete it, and {_AGAIN}") from error

    @property
    def entries(self) -> int:
        """Number of codes."""
        return self.images * (2 if self.flips else 1)

    def text(self) -> str:
        """Return the index as YAML; `parse` reads it back equal."""
        plain = _plain({"format": FORMAT, **asdict(self)})
        return yaml.safe_dump(
            plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
        )

    def differences(self, other: Index) -> list[str]:
        """Return in which settings another cache differs, in words; shards are none."""
        names = [field.name for field in fields(self) if field.name != "shards"]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return [f"{name} {_short(a)}, not {_short(b)}" for name, (a, b) in pairs.items() if a != b]


def fingerprint(tokenizer: nn.Module) -> str:
    """Return a sha256 of the names, types, shapes and bytes of a tokenizer's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum(path: Path, told: Callable[[int], object] = lambda count: None) -> str:
    """Return the sha256 of a file; `told` hears of bytes as they are read.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 23):
            digest.update(piece)
            told(len(piece))
    return digest.hexdigest()


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
        made = Schedule.scales(self.index.grids)
        if schedule != made and not (
            tokenizer.any_schedule and schedule.grids[-1] == made.grids[-1]
        ):
            raise UserError(
                f"{self.root} was made for the grids {list(made.grids)}, not "
                f"{list(schedule.grids)}: take its schedule, or make another cache with var-encode"
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
                raise UserError(f"{path} is damaged ({error}): {_AGAIN}") from error
            if code.shape != (shard.count, *self.index.shape) or len(label) != shard.count:
                raise UserError(f"{path} does not fit {INDEX}: {_AGAIN}")
            self._open[which] = code, label
        return self._open[which]


def read_index(root: Path) -> Index:
    """Return the index of a cache.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = root / INDEX
    try:
        index = Index.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        if (root / PROGRESS).is_dir():
            raise UserError(f"the cache {root} is not finished: {_AGAIN}") from error
        raise UserError(f"{root} holds no {INDEX}: make a cache with var-encode") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not index.images or sum(shard.count for shard in index.shards) != index.entries:
        raise UserError(f"{path} is damaged (shards do not make up {index.entries} entries)")
    return index


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
            raise UserError(f"{root / shard.file} is missing: {_AGAIN}")
    if verify and os.environ.get("LOCAL_RANK", "0") == "0":
        damaged = check_shards(root, index.shards)
        if damaged:
            raise UserError(f"{root / damaged[0].file} is damaged: {_AGAIN}")
    return Latents(root, index, workers)


def check_shards(root: Path, shards: Sequence[Shard], progress: bool = True) -> list[Shard]:
    """Return those shards that are missing or have another checksum, with a bar over the bytes."""
    there = [shard for shard in shards if (root / shard.file).is_file()]
    total, bad = sum((root / shard.file).stat().st_size for shard in there), set(shards) - {*there}
    with tqdm(
        total=total, desc="checking", unit="B", unit_scale=True, disable=not (progress and total)
    ) as bar:
        for shard in there:
            try:
                good = checksum(root / shard.file, bar.update) == shard.sha256
            except OSError:
                good = False
            if not good:
                bad.add(shard)
    return [shard for shard in shards if shard in bad]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
