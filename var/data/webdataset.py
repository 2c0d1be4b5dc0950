"""Images in tar files, as WebDataset keeps them, read in any order.

Files of a shard whose paths agree up to the first dot of the base name are a sample: `0001.jpg`
with `0001.cls`, its class as a number, or else with `0001.json`, `{"label": 3}`. What more there is
in a sample is left alone. Where each image lies is noted once, in `index-….npz` beside the shards.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from var.bars import progress_bar
from var.data.files import Files, Reading, shown
from var.data.images import log
from var.data.names import class_names
from var.errors import UserError


class Members(NamedTuple):
    """The images of some shards.

    Attributes:
        name: (N,) bytes, `shard.tar/member.jpg`.
        start, size: (N,) where in the shard their bytes are, and how many.
        label: (N,) their classes.
        odd: (M, 2) what cannot be used, and why.
    """

    name: np.ndarray
    start: np.ndarray
    size: np.ndarray
    label: np.ndarray
    odd: np.ndarray


class Shards(Files):
    """Images that are members of tar files, see `Files`.

    Args:
        members: where they are.
        settings: keywords of `Files`, but for what the members say.
    """

    def __init__(self, members: Members, **settings: Any) -> None:
        odd = {shown(settings["root"], file): why.decode() for file, why in members.odd.tolist()}
        super().__init__(
            **settings, files=members.name, labels=members.label.tolist(), unusable=odd
        )
        self.start, self.bytes = members.start, members.size

    def path(self, index: int) -> Path:
        """Return the shard that an image is in."""
        return self.root / os.fsdecode(self.files[index].partition(b"/")[0])

    def open(self, index: int) -> io.BytesIO:
        """Return the bytes of a member."""
        # Opened anew each time: there may be more shards than files that can be open.
        with self.path(index).open("rb") as shard:
            shard.seek(self.start[index])
            return io.BytesIO(shard.read(self.bytes[index]))


def webdataset(
    *,
    root: str | Path,
    train: bool,
    name: str = "webdataset",
    classes: int | None = None,
    names: str | Path | None = None,
    **reading: Any,
) -> Shards:
    """Return the images in the tar files of a folder.

    Args:
        root: the folder of `train*.tar`, and of `val*.tar` or `test*.tar`; or of other tar files,
            for both splits.
        train: the training images, cropped at random; or the others, of which the centre is cut.
        name: of the data set.
        classes: how many there are; None: as the labels of the training images say.
        names: file with the names of the classes, see `class_names`; None: their numbers.
        reading: see `Reading`.

    Raises:
        UserError: there are no images, a label is too large, or a value makes no sense.
    """
    how, root = Reading(train=train, **reading), Path(root)
    shards = _shards(root, train)
    members = _members(root, shards)
    if not len(members.name):
        raise UserError(f"no images with labels in {shards[0]} … : see var.data.webdataset")
    count = classes
    if count is None:  # of the training images, even if some classes have none to test with
        labels = (members if train else _members(root, _shards(root, True))).label
        count = int(labels.max(initial=-1)) + 1
    if members.label.max() >= count:
        raise UserError(
            f"{root} has images of class {members.label.max()}, but there are {count} classes: "
            "give their number, data.classes=…"
        )
    numbers = [str(i) for i in range(count)]
    if len(members.odd):
        log.warning("%d samples in %s are unusable", len(members.odd), root)
    return Shards(
        members,
        name=name,
        root=root,
        classes=numbers if names is None else class_names(Path(names), numbers),
        reading=how,
    )


def _shards(root: Path, train: bool) -> list[Path]:
    """Return the tar files of a split: its own, or all there are."""
    own = {True: sorted(root.glob("train*.tar"))}
    own[False] = sorted(root.glob("val*.tar")) or sorted(root.glob("test*.tar"))
    if not (own[True] or own[False]):
        if every := sorted(root.glob("*.tar")):
            return every
        raise UserError(f"no tar files in data.root={root}: it names their folder, not compressed")
    if not own[train]:
        missing = {True: "train*.tar", False: "val*.tar"}[train]
        raise UserError(f"{root} has no {missing} beside {own[not train][0].name}: restore them")
    return own[train]


def _members(root: Path, shards: Sequence[Path]) -> Members:
    """Return what is in some shards, from the index if that is of these."""
    path = root / f"index-{shards[0].stem}.npz"
    stats = [shard.stat() for shard in shards]
    marks = {
        "shard": np.array([os.fsencode(shard.name) for shard in shards]),
        "stamp": np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats]),
    }
    try:
        with np.load(path, allow_pickle=False) as noted:
            if all(np.array_equal(noted[key], marks[key]) for key in marks):
                return Members(*(noted[key] for key in Members._fields))
    except Exception:  # whatever is wrong with an index, it is made again
        pass
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    rows, odd = list[tuple[bytes, int, int, int]](), list[tuple[bytes, bytes]]()
    for shard in progress_bar(shards, desc="indexing", unit="shard", shown=first):
        _scan(shard, rows, odd)
    kinds = (np.bytes_, np.int64, np.int64, np.int64)
    columns = zip(*rows, strict=True) if rows else ((), (), (), ())
    arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    members = Members(*arrays, np.array(odd, np.bytes_).reshape(-1, 2))
    with suppress(OSError):  # where it cannot be written, the next process looks for itself
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with part.open("wb") as file:
            np.savez(file, **marks, **members._asdict())
        os.replace(part, path)
    return members


def _scan(
    shard: Path, rows: list[tuple[bytes, int, int, int]], odd: list[tuple[bytes, bytes]]
) -> None:
    """Add the images of a shard to `rows`, as `Members` has them, and what is wrong to `odd`."""
    images, labels = dict[str, tuple[bytes, int, int]](), dict[str, int | str]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                key, _, kind = base.partition(".")
                key, kind = folder + slash + key, kind.lower()
                if not (member.isfile() and base):
                    continue
                if f".{kind}" in _extensions():
                    file = os.fsencode(f"{shard.name}/{member.name}")
                    images[key] = file, member.offset_data, member.size
                elif kind == "cls" or (kind == "json" and key not in labels):
                    labels[key] = _label(kind, tar.extractfile(member).read())  # type: ignore[union-attr]
            tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
            if tar.fileobj.read(512).strip(b"\0"):  # type: ignore[union-attr]
                raise tarfile.ReadError("what follows is no header of a member")
    except (tarfile.TarError, OSError) as error:
        odd.append((os.fsencode(shard.name), f"damaged: {error}".encode()))
    for key, image in images.items():
        label = labels.get(key, "no label, .cls or .json")
        if isinstance(label, int):
            rows.append((*image, label))
        else:
            odd.append((image[0], label.encode()))


def _extensions() -> tuple[str, ...]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return IMG_EXTENSIONS


def _label(kind: str, content: bytes) -> int | str:
    """Return the class that a file names, or what is wrong with it."""
    try:
        label = int(content) if kind == "cls" else json.loads(content)["label"]
        if isinstance(label, int) and label >= 0:
            return label
    except (ValueError, LookupError, TypeError):
        pass
    return f"its label is no number: {content[:40]!r}"
