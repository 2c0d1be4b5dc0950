"""What is found out image by image, in a folder of parts: by one process or many, killed or not.

A part is a batch of images, always the same ones, so that nothing depends on who made it. It is
written in one step; a run that comes after makes those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from var.atomic import replace, write
from var.errors import UserError

Settings = Mapping[str, Any]


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
        if (path := root / "settings.json").is_file():
            odd = list(differences(_read(path), json.loads(_text(self.settings))))
            if odd:
                raise UserError(
                    f"{root} holds what was measured with other settings ({odd[0]}): "
                    "choose another out=…, or delete it"
                )

    @property
    def ranges(self) -> list[range]:
        """The images of each part."""
        starts = range(0, self.count, self.size)
        return [range(i, min(i + self.size, self.count)) for i in starts]

    def missing(self) -> list[int]:
        """Return the parts that are still to be made, or again as they are damaged."""
        write(self.root / "settings.json", _text(self.settings) + "\n")
        return [i for i in range(len(self.ranges)) if self._sign(i) != self.sign]

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
        metadata = {"sign": self.sign, "notes": json.dumps(notes)}

        def flushed(part: Path) -> None:
            with part.open("wb") as file:
                file.write(save(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())

        replace(self._path(number), flushed)

    def collected(self, leave: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the tensors of all images, in order, but for those of some names.

        Raises:
            UserError: a part is missing.
        """
        found: dict[str, list[Tensor]] = {}
        for number in range(len(self.ranges)):
            for name, tensor in self.read(number).items():
                if name not in leave:
                    found.setdefault(name, []).append(tensor)
        return {name: torch.cat(tensors) for name, tensors in found.items()}

    def notes(self) -> Iterator[dict[str, float]]:
        """Yield the numbers beside each part."""
        for number in range(len(self.ranges)):
            with safe_open(self._path(number), "pt") as file:
                yield json.loads(file.metadata()["notes"])

    def read(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a part.

        Raises:
            UserError: it is missing.
        """
        if self._sign(number) != self.sign:
            raise UserError(
                f"{self._path(number)} is missing when all is done: "
                "out must be a folder that all processes share"
            )
        with safe_open(self._path(number), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def one(self, number: int, name: str) -> Tensor:
        """Return a tensor of a single image, (1, ...)."""
        part, row = divmod(number, self.size)
        with safe_open(self._path(part), "pt") as file:
            return file.get_slice(name)[row : row + 1]

    def _path(self, number: int) -> Path:
        return self.root / f"{number:05d}.safetensors"

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
