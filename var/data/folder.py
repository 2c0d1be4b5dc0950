"""Folders of images, one per class, as ImageNet comes; cropped at random to train on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from var.data.files import Files, Reading, shown
from var.data.images import log
from var.data.names import class_names
from var.errors import UserError

# How files begin that hold images, whatever they are called.
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*", re.DOTALL
)


def image_folder(
    *,
    root: str | Path,
    train: bool,
    name: str = "image_folder",
    names: str | Path | None = None,
    **reading: Any,
) -> Files:
    """Return the images below a folder, those in one folder being one class.

    Args:
        root: holds `train/<class>/…` and `val/<class>/…`, or `<class>/…` for both splits.
        train: the training images, cropped at random; or the others, of which the centre is cut.
        name: of the data set.
        names: file with the names of the classes, see `class_names`; None: those of the folders.
        reading: see `Reading`.

    Raises:
        UserError: there are no images, a test class is unknown, or a value makes no sense.
    """
    how = Reading(train=train, **reading)
    split = _split(Path(root), train)
    # Test images are labelled as training images are, even if some classes have none.
    first = Path(root, "train") if Path(root, "train").is_dir() else split
    classes = _classes(first)
    if unknown := sorted(set(_classes(split)) - set(classes)):
        raise UserError(f"{split / unknown[0]} is a class that {first} has no folder of")
    listing = _listing(split, classes)
    return Files(
        name=name,
        root=split,
        files=listing.files,
        labels=listing.labels,
        classes=classes if names is None else class_names(Path(names), classes),
        reading=how,
        unusable=_renamed(split, listing.others),
    )


def _split(root: Path, train: bool) -> Path:
    """Return the folder of a split: one of its own, or that of all images."""
    folders = {True: root / "train", False: root / "val"}
    if not any(folder.is_dir() for folder in folders.values()):
        return root
    if not folders[train].is_dir():
        raise UserError(f"{folders[train]} is missing beside {folders[not train]}: restore it")
    return folders[train]


def _classes(folder: Path) -> list[str]:
    from torchvision.datasets.folder import find_classes

    try:
        names, _ = find_classes(str(folder))
    except OSError as error:
        raise UserError(
            f"no folders of images below {folder}, as ImageNet comes: data.root names the folder "
            "of train/<class>/… and val/<class>/…, or of <class>/…"
        ) from error
    return [name for name in names if not name.startswith(".")]


class _Listing(NamedTuple):
    """Files with the extension of an image, as paths in the folder; their labels; and others."""

    files: list[bytes]
    labels: list[int]
    others: list[bytes]


def _listing(folder: Path, classes: Sequence[str]) -> _Listing:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    listing = _Listing([], [], [])
    for label, name in enumerate(classes):
        for place, _, names in sorted(os.walk(folder / name, followlinks=True)):
            for each in sorted(names):
                file = os.fsencode(os.path.relpath(os.path.join(place, each), folder))
                if each.lower().endswith(IMG_EXTENSIONS):
                    listing.files.append(file)
                    listing.labels.append(label)
                elif not each.startswith("."):
                    listing.others.append(file)
    if not listing.files:
        raise UserError(f"no images in the folders below {folder}: {', '.join(IMG_EXTENSIONS)}")
    return listing


def _renamed(folder: Path, others: Sequence[bytes]) -> dict[str, str]:
    """Return those files without the extension of an image that hold one, and say that."""
    found = {}
    for file in others:
        try:
            with open(folder / os.fsdecode(file), "rb") as opened:
                if _MAGIC.match(opened.read(12)):
                    found[shown(folder, file)] = "renamed: no image extension"
        except OSError:
            continue  # a file that is no image cannot be missed
    if others:
        log.warning(
            "%d files below %s have no image extension and are ignored, %s for one; %d of them "
            "hold images",
            len(others), folder, next(iter(found), shown(folder, others[0])), len(found),
        )  # fmt: skip
    return found
