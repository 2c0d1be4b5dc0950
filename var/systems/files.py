"""Files of published checkpoints: find or fetch them, open them safely."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from var.errors import UserError


def locate(repository: str, file: str, folder: Path | None = None) -> Path:
    """Return the path of a file: in `folder` if it is there, else in the hub's cache.

    Downloads with a progress bar where needed; `HF_HUB_OFFLINE=1` forbids it.

    Raises:
        UserError: the file is not there and cannot be fetched.
    """
    if folder is not None and (folder / file).is_file():
        return folder / file
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

    PyTorch files are opened without running code from them, and mapped into memory where possible.

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
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        inside = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} is no flat state dict of tensors; it holds: {inside}")
    return state
