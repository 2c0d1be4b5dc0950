"""What is found out image by image, in a folder of parts: by one process or many, killed or not.

A part is a batch of images, always the same ones, so that nothing depends on who made it. It is
written in one step; a run that comes after makes those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from var.atomic import write, write_bytes
from var.devices import pieces
from var.digests import of_tensors
from var.errors import UserError

Settings = Mapping[str, Any]
SETTINGS = "settings.json"


class Parts:
    """The parts of an evaluation.

    Args:
        root: their folder; made if it is not there.
        settings: all that the parts depend on, as JSON knows it.
        count: number of images.
        size: of a part.

    Raises:
        UserError: the folder holds parts of other settings.
    """

    def __init__(self, root: Path, settings: Settings, count: int, size: int) -> None:
        self.root, self.count, self.size = root, count, size
        self.settings = {**settings, "images": count, "part": size}
        self.sign = hashlib.sha256(_text(self.settings).encode()).hexdigest()
        if (path := root / SETTINGS).is_file():
            odd = list(differences(_read(path), json.loads(_text(self.settings))))
            if odd:
                raise UserError(
                    f"{root} holds what was measured with other settings ({odd[0]}): "
                    "choose another out=…, or delete it"
                )

    @property
    def ranges(self) -> list[range]:
        """The images of each part."""
        return pieces(self.count, self.size)

    def check(self) -> None:
        """Check that this process sees the folder as that one does which asked what is missing.

        Raises:
            UserError: it does not.
        """
        if not (self.root / SETTINGS).is_file():
            raise UserError(f"out={self.root.parent} must be a folder that all processes share")

    def missing(self, needed: Collection[str] = ()) -> list[int]:
        """Return the parts that are still to be made, or again as they are damaged.

        So are those that lack one of the tensors that are `needed`.
        """
        write(self.root / SETTINGS, _text(self.settings) + "\n")
        return [i for i in range(len(self.ranges)) if not self._sound(i, needed)]

    def add(self, number: int, found: Mapping[str, Tensor], **notes: float) -> None:
        """Write a part: tensors of its images, each of which comes first, and numbers beside them.

        Raises:
            UserError: it cannot be written, or what was found is not finite.
        """
        for name, tensor in found.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                here = self.ranges[number]
                raise UserError(
                    f"{name} of images {here.start}..{here.stop - 1} are not finite: what they are "
                    "made with is at fault; try precision=fp32"
                )
        tensors = {name: tensor.cpu().contiguous() for name, tensor in found.items()}
        metadata = {"sign": self.sign, "sum": of_tensors(tensors), "notes": json.dumps(notes)}
        write_bytes(self._path(number), save(tensors, metadata))

    def collected(self, leave: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the tensors of all images, in order, but for those of some names.

        Raises:
            UserError: a part is missing.
        """
        found: dict[str, list[Tensor]] = {}
        for number in range(len(self.ranges)):
            if self._sign(number) != self.sign:
                raise UserError(
                    f"{self._path(number)} is missing when all is done: "
                    "out must be a folder that all processes share"
                )
            with safe_open(self._path(number), "pt") as file:
                for name in set(file.keys()).difference(leave):
                    found.setdefault(name, []).append(file.get_tensor(name))
        return {name: torch.cat(tensors) for name, tensors in found.items()}

    def notes(self) -> Iterator[dict[str, float]]:
        """Yield the numbers beside each part."""
        for number in range(len(self.ranges)):
            with safe_open(self._path(number), "pt") as file:
                yield json.loads(file.metadata()["notes"])

    def one(self, number: int, name: str) -> Tensor:
        """Return a tensor of a single image, (1, ...)."""
        part, row = divmod(number, self.size)
        with safe_open(self._path(part), "pt") as file:
            return file.get_slice(name)[row : row + 1]

    def _path(self, number: int) -> Path:
        return self.root / f"{number:05d}.safetensors"

    def _sound(self, number: int, needed: Collection[str]) -> bool:
        """Return whether a part is there, of these settings, whole and undamaged."""
        if self._sign(number) != self.sign:
            return False
        with safe_open(self._path(number), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = file.metadata()["sum"]
        # A part of which all images are unusable has none of what is needed.
        lacking = len(tensors["label"]) and not tensors.keys() >= set(needed)
        return not lacking and of_tensors(tensors) == known

    def _sign(self, number: int) -> str | None:
        try:
            with safe_open(self._path(number), "pt") as file:
                return (file.metadata() or {}).get("sign")
        except (OSError, SafetensorError):
            return None


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yield where two JSON values differ, as `sampling.top_k is 0 there, 5 here`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    elif old != new:
        yield f"{name} is {json.dumps(old)} there, {json.dumps(new)} here"


def _text(settings: Settings) -> str:
    return json.dumps(settings, indent=2, sort_keys=True, default=list)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete its folder") from error
