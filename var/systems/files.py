"""Files of published checkpoints: find or fetch them, open them safely."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from var.errors import UserError

_WRAPPERS = (["model"], ["module"], ["state_dict"])


def locate(repository: str, file: str | tuple[str, ...], folder: Path | None = None) -> Path:
    """Return the path of a file: in `folder` if it is there, else in the hub's cache.

    Downloads with a progress bar where needed; `HF_HUB_OFFLINE=1` forbids it.

    Args:
        repository: on the hub.
        file: its name; of several names any will do in `folder`, the last is that in `repository`.
        folder: looked into first.

    Raises:
        UserError: the file is not there and cannot be fetched.
    """
    names = (file,) if isinstance(file, str) else file
    if folder is not None:
        for path in (folder / name for name in names):
            if path.is_file():
                return path
    file = names[-1]
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise UserError("downloading needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repository, file))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot fetch {file} from huggingface.co/{repository}: {reason} "
            "(download it elsewhere and name its folder)"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the flat state dict in a `.safetensors` or PyTorch file.

    It may be wrapped, as all that there is besides plain values, in an entry `model`, `module` or
    `state_dict`. PyTorch files are opened without running code from them, and mapped into memory
    where possible.

    Raises:
        UserError: no such file, damaged, or something else than named tensors.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot read {path}: damaged, truncated, or no checkpoint ({reason})"
        ) from error
    found = _unwrapped(state)
    if not _is_state(found):
        inside = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} is no flat state dict of tensors; it holds: {inside}")
    return found


def _unwrapped(state: Any) -> Any:
    """Return the only thing of substance in a file if its name says that it is the weights."""
    if not isinstance(state, dict) or _is_state(state):
        return state
    parts = [key for key, value in state.items() if not isinstance(value, int | float | str | None)]
    return state[parts[0]] if parts in _WRAPPERS else state


def _is_state(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())
