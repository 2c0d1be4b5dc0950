"""Autoencoders of the diffusers library: what they save becomes a run with a continuous tokenizer.

Beside the store, which reads our own folders. Their `AutoencoderKL` is saved as a `config.json` and
a safetensors file, alone or in the `vae/` of a whole pipeline.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from var import recipe
from var.diffusers_layout import CONFIG, WEIGHTS, read_json
from var.errors import UserError
from var.models.foreign import Key, KeyTable, State
from var.recipe import Recipe, Spec
from var.schedule import Schedule
from var.store import Run
from var.systems.files import read_state

HOMES = (Path(), Path("vae"))
_CLASS = "AutoencoderKL"

_log = logging.getLogger(__name__)

_AS_IT_IS = Key("{rest}", "{rest}")
# Files from before 2023 have the projections of attention under other names.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_KEYS = tuple(
    Key(f"{{rest}}.{old}.{end}", f"{{rest}}.{new}.{end}")
    for old, new in _OLD.items()
    for end in ("weight", "bias")
)


def home(folder: Path) -> Path | None:
    """Return where in a folder an `AutoencoderKL` was saved, one of `HOMES`; None if nowhere.

    Raises:
        UserError: a `config.json` cannot be read.
    """
    for place in HOMES:
        path = folder / place / CONFIG
        if path.is_file() and read_json(path).get("_class_name") == _CLASS:
            return place
    return None


def load(folder: Path, device: torch.device | str = "cpu") -> Run:
    """Return the run of an `AutoencoderKL` that was saved in a folder: a tokenizer alone.

    Its schedule is `octaves`, what it was trained on is unknown.

    Raises:
        UserError: a file is missing, damaged, pickled, or does not fit the others.
    """
    vae, path = _keywords(folder / CONFIG), folder / WEIGHTS
    if not path.is_file():
        found = sorted(each.name for each in folder.glob("diffusion_pytorch_model*"))
        raise UserError(
            f"{folder} has no {WEIGHTS}, but {', '.join(found) or 'no weights at all'}: load it "
            f"with diffusers' {_CLASS}.from_pretrained, and save_pretrained it as one such file"
        )
    spec = {"_target_": "var.tokenizers.continuous.KL", "vae": vae}
    state = {key: tensor.to(device, torch.float32) for key, tensor in read_state(path).items()}
    old = any(key.match(name) for key in _OLD_KEYS for name in state)
    table = KeyTable((*_OLD_KEYS, _AS_IT_IS) if old else (_AS_IT_IS,))
    tokenizer = filled(spec, table, state, str(path), where=f"{folder / CONFIG}")
    return Run(Recipe(tokenizer=spec, schedule=octaves(vae)), tokenizer)


def filled(spec: Spec, table: KeyTable, state: State, what: str, where: str) -> nn.Module:
    """Return a `KL` in evaluation mode with the weights of a published state.

    Args:
        spec: how to build it.
        table: from the names of the state to those of `AutoencoderKL`.
        state: it is taken over without a copy.
        what: name of the state in error messages.
        where: name of the spec there.

    Raises:
        UserError: spec and state do not fit; names the keys.
    """
    tokenizer: Any = recipe.build(spec, where)
    table.load(tokenizer.vae, state, what)
    tokenizer.reset_buffers()  # they are no weights, and still without memory
    return tokenizer.eval()


def octaves(vae: Mapping[str, Any]) -> Schedule:
    """Return sides that double up to the latent grid of an autoencoder's `sample_size`.

    Args:
        vae: keywords of `AutoencoderKL`.

    >>> octaves({"sample_size": 48, "block_out_channels": (64, 64)}).grids[-2:]
    ((16, 16), (24, 24))
    """
    factor, size = 2 ** (len(vae["block_out_channels"]) - 1), vae["sample_size"]
    last = [max(1, side // factor) for side in ([size] * 2 if isinstance(size, int) else size)]
    count = (max(last) - 1).bit_length() + 1
    return Schedule.scales([[min(2**k, side) for side in last] for k in range(count)])


def _keywords(path: Path) -> dict[str, Any]:
    """Return all that the constructor of `AutoencoderKL` is to be told."""
    from diffusers.models.autoencoders.autoencoder_kl import (
        AutoencoderKL,
    )  # slow to import, and needed here only

    config = read_json(path)
    known = inspect.signature(AutoencoderKL).parameters
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    if unknown:
        _log.warning("%s: without meaning to this %s: %s", path, _CLASS, ", ".join(unknown))
    defaults = {name: parameter.default for name, parameter in known.items()}
    return defaults | {key: value for key, value in config.items() if key in known}
