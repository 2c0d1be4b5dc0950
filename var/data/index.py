"""What a cache of codes says of itself: `cache.yaml`, written last."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from var.errors import UserError
from var.schedule import Grid, Schedule

INDEX, FORMAT = "cache.yaml", 1
PROGRESS = ".progress"  # folder with what is done so far, until there is a `cache.yaml`
NUMBERS = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.uint8, torch.int16, torch.int32, torch.float16, torch.float32)
}
AGAIN = "run var-encode again with the same settings, it makes what is missing"


@dataclass(frozen=True)
class Shard:
    """A file of entries.

    Attributes:
        file: its name.
        count: entries in it.
        sha256: of its bytes.
        unusable: paths of images that it lacks, and why they are unusable.
    """

    file: str
    count: int
    sha256: str
    unusable: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> Shard:
        """Return the shard of which `plain` made this.

        Raises:
            TypeError: it is of nothing of that kind.
        """
        return cls(**{**plain, "unusable": tuple(map(tuple, plain.get("unusable", ())))})

    def plain(self) -> dict[str, Any]:
        """Return it as YAML knows it, as it always was where no image is unusable."""
        found = {"unusable": [list(pair) for pair in self.unusable]} if self.unusable else {}
        return {"file": self.file, "count": self.count, "sha256": self.sha256, **found}


@dataclass(frozen=True)
class Index:
    """What is in a cache.

    Attributes:
        data: name of the data set.
        split: of it.
        source: digest of the data set, see `ImageData.digest`.
        size: side of its images in pixels.
        classes: their names.
        images: number of images in the data set, unusable ones among them.
        flips: whether each is there twice, as entries 2 i (plain) and 2 i + 1 (mirrored).
        shard_size: images in a shard.
        numbers: type of the codes, one of `NUMBERS`.
        shape: of a code.
        grids: of the schedule that they were made for.
        tokenizer: fingerprint of what made them.
        shards: in the order of the entries.
        raster: whether that is the raster of the one grid; else the grids are its scales.
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
    raster: bool = False

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
            plain["shards"] = tuple(map(Shard.parse, plain["shards"]))
            index = cls(**plain)
            _ = NUMBERS[index.numbers], index.schedule
            return index
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{where} is damaged ({reason}): delete it, and {AGAIN}") from error

    @property
    def schedule(self) -> Schedule:
        """The schedule that the codes were made for.

        Raises:
            ValueError: a raster of several grids, or none at all.
        """
        if not self.raster:
            return Schedule.scales(self.grids)
        (grid,) = self.grids
        return Schedule.raster(grid)

    @property
    def unusable(self) -> dict[str, str]:
        """Paths of the images that were left out, and why."""
        return dict(pair for shard in self.shards for pair in shard.unusable)

    @property
    def entries(self) -> int:
        """Number of codes."""
        return (self.images - len(self.unusable)) * (2 if self.flips else 1)

    def text(self) -> str:
        """Return the index as YAML; `parse` reads it back equal."""
        shards = [shard.plain() for shard in self.shards]
        plain = _plain({"format": FORMAT, **asdict(self), "shards": shards})
        if not self.raster:  # as it always was
            del plain["raster"]
        return yaml.safe_dump(
            plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
        )

    def differences(self, other: Index) -> list[str]:
        """Return in which settings another cache differs, in words; shards are none."""
        names = [field.name for field in fields(self) if field.name != "shards"]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return [f"{name} {_short(a)}, not {_short(b)}" for name, (a, b) in pairs.items() if a != b]


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
            raise UserError(f"the cache {root} is not finished: {AGAIN}") from error
        raise UserError(f"{root} holds no {INDEX}: make a cache with var-encode") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not index.entries or sum(shard.count for shard in index.shards) != index.entries:
        raise UserError(f"{path} is damaged (shards do not make up {index.entries} entries)")
    return index


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
