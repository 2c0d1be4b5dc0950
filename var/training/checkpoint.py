"""Checkpoints that are either whole or not there, whenever the process dies.

They hold whole tensors by name, however these are shared out among processes: a run goes on with
any number of processes. There are no random states, because whatever is drawn in a step is a
function of the seed and the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from var.errors import UserError

_PREFIX = "step-"
_PARTS = ("model", "average", "optimizer")


class Snapshot(NamedTuple):
    """A run after some steps.

    Attributes:
        step: optimiser steps done.
        model, average: weights and buffers by name, and their average.
        optimizer: what the optimiser remembers of each weight, `<name>/<slot>`.
        extra: tensors and plain values that come on top.
        settings: plain values that were in force.
    """

    step: int
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    extra: dict[str, Any]
    settings: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run: folders `step-00001000`, the newest of which is resumed.

    A checkpoint is written under a hidden name, flushed to disk and then renamed; one that is
    dropped is renamed first. Whatever has a plain name is complete. One process does all of this.

    Args:
        folder: where they are kept.
        keep: how many of them, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{_PREFIX}*"))

    @property
    def last(self) -> str:
        """What the newest complete one is called, or `none`."""
        return str(next(reversed(self.all()), "none"))

    def save(self, snapshot: Snapshot) -> Path:
        """Write a snapshot; drop what is older than the last few, and what is newer.

        Newer ones are of a way that the run went before it went back.

        Raises:
            UserError: it cannot be written, as on a full disk; what there was is still there.
        """
        final = self.folder / f"{_PREFIX}{snapshot.step:08d}"
        partial = self.folder / f".{final.name}"
        try:
            for stale in self.folder.glob(f".{_PREFIX}*"):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial, snapshot)
            flush(partial)
            self._drop([final] if final.exists() else [])
            partial.rename(final)
            flush(self.folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {final}: {_line(error)}; last good checkpoint: "
                f"{self.last}. Make room, then go on by the same command"
            ) from error
        self._drop([other for other in self.all() if other.name > final.name])
        self._drop(self.all()[: -self.keep])
        return final

    def load(self, path: Path, model: Mapping[str, Tensor]) -> Snapshot:
        """Return the snapshot in a checkpoint, on the CPU.

        Args:
            path: of the checkpoint.
            model: weights and buffers that it shall be for.

        Raises:
            UserError: it is of another model, or damaged.
        """
        try:
            check(path / "model.safetensors", model)
            parts = {part: load_file(path / f"{part}.safetensors") for part in _PARTS}
            extra = torch.load(path / "extra.pt", map_location="cpu", weights_only=True)
            progress = json.loads((path / "progress.json").read_text())
            return Snapshot(progress["step"], **parts, extra=extra, settings=progress["settings"])
        except Exception as error:  # of safetensors, pickle, json, torch: all say "not this file"
            raise UserError(
                f"cannot resume from {path}: {_line(error)}. Was the configuration changed? "
                "Start a new run with another name=…, or restore the old configuration"
            ) from error

    def _drop(self, folders: list[Path]) -> None:
        for folder in folders:
            hidden = folder.rename(folder.with_name(f".{folder.name}.old"))
            shutil.rmtree(hidden, ignore_errors=True)  # what is left goes with the next one


def check(path: Path, model: Mapping[str, Tensor]) -> None:
    """Check that a file of tensors is for a model.

    Raises:
        ValueError: it is not; the message names what is odd.
    """
    with safe_open(path, framework="pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    here = {name: tuple(value.shape) for name, value in model.items()}
    odd = sorted(name for name in here | there if here.get(name) != there.get(name))
    if odd:
        told = [f"{n} {there.get(n, 'missing')}, not {here.get(n, 'wanted')}" for n in odd[:3]]
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ValueError(f"it is of another model: {'; '.join(told)}{more}")


def _write(folder: Path, snapshot: Snapshot) -> None:
    for part in _PARTS:
        tensors = {name: value.contiguous() for name, value in getattr(snapshot, part).items()}
        save_file(tensors, folder / f"{part}.safetensors")
    torch.save(snapshot.extra, folder / "extra.pt")
    progress = {"step": snapshot.step, "settings": snapshot.settings}
    (folder / "progress.json").write_text(json.dumps(progress))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def flush(folder: Path) -> None:
    """Force a folder's files, and their names, to disk."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
