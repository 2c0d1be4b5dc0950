"""Checkpoints that are either whole or not there, whenever the process dies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from var.errors import UserError

_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of a run: folders `step-00001000`, the newest of which is resumed.

    A checkpoint is written under another name, flushed to disk and then renamed.

    Args:
        folder: where they are kept.
        keep: how many of them.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{_PREFIX}*"))

    def save(self, accelerator: Accelerator, step: int) -> Path:
        """Write the state of a run after `step` steps and drop what is older than the last few."""
        final = self.folder / f"{_PREFIX}{step:08d}"
        partial = self.folder / f".{final.name}"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / "progress.json").write_text(json.dumps({"step": step}))
            flush(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            flush(self.folder)
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()
        return final

    def load(self, accelerator: Accelerator, path: Path) -> int:
        """Restore a run and return the number of steps it has done.

        Raises:
            UserError: the checkpoint is of another model or damaged.
        """
        try:
            accelerator.load_state(str(path))
            return int(json.loads((path / "progress.json").read_text())["step"])
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            first = " ".join(str(error).split())[:300]
            raise UserError(
                f"cannot resume from {path}: {first}. Was the configuration changed? "
                "Start a new run with another name=…, or restore the old configuration"
            ) from error


def flush(folder: Path) -> None:
    """Force a folder's files, and their names, to disk."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
