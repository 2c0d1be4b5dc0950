"""Checkpoints that are either whole or not there, whenever the process dies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from var.errors import UserError

_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of a run: folders `step-00001000`, the newest of which is resumed.

    A checkpoint is written under a hidden name, flushed to disk and then renamed; one that is
    dropped is renamed first. Whatever has a plain name is complete.

    Args:
        folder: where they are kept.
        keep: how many of them, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{_PREFIX}*"))

    def save(self, accelerator: Accelerator, step: int, extra: dict[str, Any]) -> Path:
        """Write the state of a run after `step` steps and drop what is older than the last few.

        Args:
            accelerator: knows module, optimiser, loss scale and random states.
            step: optimiser steps done.
            extra: tensors and plain values that come on top, equal on all processes.
        """
        final = self.folder / f"{_PREFIX}{step:08d}"
        partial = self.folder / f".{final.name}"
        if accelerator.is_main_process:
            for stale in self.folder.glob(f".{_PREFIX}*"):
                shutil.rmtree(stale)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            torch.save(extra, partial / "extra.pt")
            (partial / "progress.json").write_text(json.dumps({"step": step}))
            flush(partial)
            self._drop([final] if final.exists() else [])
            partial.rename(final)
            flush(self.folder)
            self._drop(self.all()[: -self.keep])
        accelerator.wait_for_everyone()
        return final

    def load(self, accelerator: Accelerator, path: Path) -> tuple[int, dict[str, Any]]:
        """Restore a run; return the number of steps it has done, and what came on top.

        Checkpoints of this run that are newer than `path` are dropped: the run takes another way.

        Raises:
            UserError: the checkpoint is of another model or damaged.
        """
        try:
            accelerator.load_state(str(path))
            extra = torch.load(path / "extra.pt", map_location="cpu", weights_only=True)
            step = int(json.loads((path / "progress.json").read_text())["step"])
        except Exception as error:  # of safetensors, pickle, json, torch: all say "not this file"
            first = " ".join(str(error).split())[:300]
            raise UserError(
                f"cannot resume from {path}: {first}. Was the configuration changed? "
                "Start a new run with another name=…, or restore the old configuration"
            ) from error
        if not (path / "random_states_0.pkl").is_file():
            raise UserError(f"cannot resume from {path}: its random state is missing")
        if accelerator.is_main_process:
            self._drop([other for other in self.all() if other.name > path.name])
        return step, extra

    def _drop(self, folders: list[Path]) -> None:
        for folder in folders:
            hidden = folder.rename(folder.with_name(f".{folder.name}.old"))
            shutil.rmtree(hidden)


def flush(folder: Path) -> None:
    """Force a folder's files, and their names, to disk."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
