"""The run folder: `config.yaml`, `tokenizer.safetensors` and, of a generator, `model.safetensors`.

Beside them there may be the `budget.yaml` of the generator's compressed cache, and a `README.md`,
the model's card: it is read with the run, and a save never replaces one that is there.

A folder is self-contained, strict (what does not fit is refused, by name) and always readable: a
save that is cut short at any moment leaves the old run or the new one, never a mixture.

Rule for modules that are stored: every buffer is persistent. Modules are built without memory and
take over the stored tensors as they are, so that a buffer outside the state dict would stay empty;
tables that can be computed are computed where they are used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from var.cache.scale_budget import Budget
from var.errors import UserError
from var.recipe import Recipe, Spec, build
from var.schedule import Schedule

CONFIG, TOKENIZER, MODEL = "config.yaml", "tokenizer.safetensors", "model.safetensors"
BUDGET, CARD = "budget.yaml", "README.md"
FILES = [CONFIG, TOKENIZER, MODEL, BUDGET, CARD]
_STAGE, _COMMIT = ".saving", ".saved"


@dataclass(frozen=True)
class Run:
    """What a run folder holds, in memory.

    Attributes:
        recipe: how the parts are built, and what they were made from.
        tokenizer: pixels to tokens and back.
        model: the generator; None for a tokenizer alone.
        budget: of its compressed cache, if it was calibrated.
        card: what is said of it in Markdown, see `var.cards`; empty if there is nothing.
    """

    recipe: Recipe
    tokenizer: nn.Module
    model: nn.Module | None = None
    budget: Budget | None = None
    card: str = ""

    def __post_init__(self) -> None:
        if (self.model is None) != (self.recipe.backbone is None):
            raise ValueError("a run has a model and a recipe for it, or neither")


def exists(folder: str | Path) -> bool:
    """Return whether there is a run in the folder."""
    return _locate(Path(folder), CONFIG).is_file()


def save(folder: str | Path, run: Run) -> None:
    """Write a run folder, in one step as seen from outside; other files in it are left alone.

    One process at a time may save to a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    stage = folder / _STAGE
    try:
        _finish(folder)
        shutil.rmtree(stage, ignore_errors=True)  # of a save that was cut short
        stage.mkdir(parents=True)
        (stage / CONFIG).write_text(run.recipe.text(), encoding="utf-8")
        write(stage / TOKENIZER, run.tokenizer, like=stage / CONFIG)
        if run.model is not None:
            write(stage / MODEL, run.model, like=stage / CONFIG)
        if run.budget is not None:
            (stage / BUDGET).write_text(run.budget.text(), encoding="utf-8")
        if run.card and not (folder / CARD).exists():
            (stage / CARD).write_text(run.card, encoding="utf-8")
        for path in [*stage.iterdir(), stage]:
            _sync(path)
        if run.budget is None:  # that of the old weights is not for the new ones
            (folder / BUDGET).unlink(missing_ok=True)
        stage.rename(folder / _COMMIT)  # here the new run takes the place of the old one
        _sync(folder)
        _finish(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the run folder {folder}: {error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Return the run in a folder, its modules in evaluation mode.

    Args:
        folder: as written by `save`.
        device: where the weights go, straight from the file.
        dtype: of the generator. The tokenizer is float32 always: what scales add up to, and which
            code is nearest, shall not depend on how fast the generator is to run.

    Raises:
        UserError: a file is missing, damaged, or does not fit; the message names what.
    """
    folder = Path(folder)
    recipe, path = read_recipe(folder), _locate(folder, CONFIG)
    where, file = f"{path}: tokenizer", _locate(folder, TOKENIZER)
    tokenizer = module(recipe.tokenizer, where, file, device, torch.float32)
    model = None
    if recipe.backbone is not None:
        where, file = f"{path}: backbone", _locate(folder, MODEL)
        model = module(recipe.backbone, where, file, device, dtype)
    file = _locate(folder, BUDGET)
    budget = read_budget(file, recipe.schedule) if model is not None and file.exists() else None
    return Run(recipe, tokenizer, model, budget, read_card(_locate(folder, CARD)))


def read_card(path: Path) -> str:
    """Return the card in a file, which may be anything; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_recipe(folder: str | Path) -> Recipe:
    """Return what a run folder's configuration says.

    Raises:
        UserError: it cannot be read, or says what makes no sense.
    """
    path = _locate(Path(folder), CONFIG)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} is not a run folder: cannot read {CONFIG}: {error}") from error
    return Recipe.parse(text, str(path))


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    device = torch.device(device)
    try:
        return load_file(path, device="cpu" if device.type == "cpu" else str(device))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the run folder is incomplete, fetch it again"
        ) from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged, perhaps truncated ({error}): fetch or save it again"
        ) from error


def read_budget(path: Path, schedule: Schedule) -> Budget:
    """Return the budget in a file, for a model with that schedule.

    Raises:
        UserError: the file cannot be read, is no budget, or is one for another schedule.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the budget {path}: {error}") from error
    return Budget.parse(text, str(path), schedule)


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Check that a state has the keys and shapes that a module expects, and kinds of numbers.

    Raises:
        UserError: it has not; the message names the keys and shapes.
    """
    odd = [
        key
        for key in expected
        if key in state and state[key].is_floating_point() != expected[key].is_floating_point()
    ]
    faults = [
        *_named("missing", [key for key in expected if key not in state]),
        *_named("unknown", [key for key in state if key not in expected]),
        *_named(
            "wrong shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
                for key in expected
                if key in state and state[key].shape != expected[key].shape
            ],
        ),
        *_named("wrong type", [f"{key} {state[key].dtype}" for key in odd]),
    ]
    if faults:
        raise UserError(f"{where} does not fit its configuration: {'; '.join(faults)}")


def module(
    spec: Spec,
    where: str,
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
) -> nn.Module:
    """Return the module of a spec, in evaluation mode, with the weights in a safetensors file.

    Args:
        spec: how to build it.
        where: names the spec in messages.
        path: of the weights.
        device: where they go, straight from the file.
        dtype: of the module.

    Raises:
        UserError: the file is missing, damaged, or does not fit; the message names what.
    """
    made = build(spec, where)
    state = read(path, device)
    check_fit(made.state_dict(), state, str(path))
    made.load_state_dict(state, strict=True, assign=True)
    del state  # not to hold weights of both types
    made.to(dtype)  # by the module: some keep a few weights in float32
    empty = [name for name, buffer in made.named_buffers() if buffer.is_meta]
    if empty:
        raise RuntimeError(f"{where}: buffers must be persistent to be stored: {', '.join(empty)}")
    return made.eval()


def write(path: Path, module: nn.Module, like: Path) -> None:
    """Write the weights of a module to a safetensors file, to be read by whoever may read `like`.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    shutil.copymode(like, path)  # safetensors makes files that only we can read


def _named(fault: str, items: list[str], most: int = 3) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return [f"{fault}: {', '.join(items[:most])}{more}"]


# A finished save waits in `.saved` until its files are moved over the old ones. Whoever reads looks
# there first, so that the move may be cut short anywhere; the next save completes it.
def _locate(folder: Path, name: str) -> Path:
    moved, waiting = folder / name, folder / _COMMIT / name
    return waiting if waiting.is_file() else moved


def _finish(folder: Path) -> None:
    commit = folder / _COMMIT
    if not commit.is_dir():
        return
    for path in commit.iterdir():
        path.replace(folder / path.name)
    commit.rmdir()
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened, nor need to be
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
