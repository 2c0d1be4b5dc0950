"""Our runs in the folder layout of the diffusers library, and back.

`model_index.json` names the components, each a folder: `tokenizer/` and `transformer/` with a
`config.json` and weights, `scheduler/` with all else that a run folder's configuration says. The
classes are those of `var.diffusers_parts`, which is known here by name only, as diffusers is slow
to load. No code in a folder is run. Autoencoders by diffusers: see `var.diffusers_vae`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from var import store
from var.cache.scale_budget import Budget
from var.errors import UserError
from var.recipe import Recipe
from var.store import Run

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINE = "VARPipeline"
TOKENIZER, TRANSFORMER, SETTINGS = "VARTokenizer", "VARTransformer", "VARScheduler"
COMPONENTS = {"tokenizer": TOKENIZER, "transformer": TRANSFORMER, "scheduler": SETTINGS}
# All that is downloaded of a repository: no code.
FILES = [
    INDEX,
    store.CARD,
    f"scheduler/{SCHEDULER}",
    *(f"{part}/{file}" for part in ("tokenizer", "transformer") for file in (CONFIG, WEIGHTS)),
]
_CLASS, _VERSION = "_class_name", "_diffusers_version"

# What `custom_pipeline=` and `trust_remote_code=True` run: of a folder in this layout, this alone.
_CODE_FILE, _COMPONENT_FILE = "pipeline.py", "component"
CODE_FILES = [_CODE_FILE, *(f"{part}/{_COMPONENT_FILE}.py" for part in COMPONENTS)]
_CODE = '''"""Finds the class of var-toolkit that diffusers is to load."""

try:
    from var.{home} import {name}
except ImportError as error:
    raise ImportError("this model needs var-toolkit: pip install var-toolkit") from error

__all__ = ["{name}"]
'''


def exists(folder: Path) -> bool:
    """Return whether there is a run in this layout in the folder.

    Raises:
        UserError: its index cannot be read.
    """
    path = folder / INDEX
    return path.is_file() and read_json(path).get(_CLASS) == PIPELINE


def save(folder: str | Path, run: Run) -> None:
    """Write a run in this layout; other files in the folder are left alone, and so is a README.

    The index is away meanwhile: a save that is cut short leaves no run, never a mixture.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        (folder / INDEX).unlink(missing_ok=True)
        *texts, (index, entries) = _texts(run)
        for path, text in texts:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        save_weights(folder / "tokenizer", run.tokenizer)
        if run.model is not None:
            save_weights(folder / "transformer", run.model)
        if run.card and not (folder / store.CARD).exists():
            (folder / store.CARD).write_text(run.card, encoding="utf-8")
        (folder / index).write_text(entries, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def save_weights(folder: Path, module: nn.Module) -> None:
    """Write the weights of a component whose configuration is there.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    store.write(folder / WEIGHTS, module, like=folder / CONFIG)


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Return the run in a folder of this layout; arguments and errors are those of `store.load`."""
    folder = Path(folder)
    entry = read_json(folder / INDEX).get("transformer")
    settings = dict(component(folder / "scheduler", SETTINGS))
    text = settings.pop("budget", None)
    plain: dict[str, Any] = {"tokenizer": component(folder / "tokenizer", TOKENIZER).get("spec")}
    if isinstance(entry, list) and any(entry):  # else what lies there is of another run
        plain["backbone"] = component(folder / "transformer", TRANSFORMER).get("spec")
    recipe, model = Recipe.of({**settings, **plain}, str(folder)), None
    tokenizer = load_module(folder / "tokenizer", recipe.tokenizer, device, torch.float32)
    if recipe.backbone is not None:
        model = load_module(folder / "transformer", recipe.backbone, device, dtype)
    budget = parse_budget(text, f"{folder / 'scheduler'}: budget", recipe)
    return Run(recipe, tokenizer, model, budget, store.read_card(folder / store.CARD))


def parse_budget(text: object, where: str, recipe: Recipe) -> Budget | None:
    """Return the budget in a scheduler's configuration, if there is one; see `Budget.parse`."""
    return None if text is None else Budget.parse(str(text), where, recipe.schedule)


def load_module(
    folder: Path, spec: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype
) -> nn.Module:
    """Return the module of a component's folder; see `store.module`."""
    return store.module(spec, f"{folder / CONFIG}: spec", folder / WEIGHTS, device, dtype)


def component(folder: Path, kind: str) -> dict[str, Any]:
    """Return what the configuration of a component says.

    Raises:
        UserError: it cannot be read, or is that of a component of another class than `kind`.
    """
    path = folder / (SCHEDULER if kind == SETTINGS else CONFIG)
    config = read_json(path)
    if config.get(_CLASS) != kind:
        raise UserError(f"{path} is for a {config.get(_CLASS)}, not for a {kind} of var-toolkit")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def settings(run: Run) -> dict[str, Any]:
    """Return what the scheduler's configuration says: all that is no component's."""
    plain = run.recipe.plain()
    parts = {key: plain[key] for key in plain if key not in ("tokenizer", "backbone")}
    return {**parts, "budget": run.budget.text()} if run.budget else parts


def read_json(path: Path) -> dict[str, Any]:
    """Return what a configuration says.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"cannot read {path}: it does not map names to values")
    return config


def _texts(run: Run) -> Iterator[tuple[Path, str]]:
    """Yield all files but weights and card, by their place in the folder, the index last."""
    plain, configs = run.recipe.plain(), {"scheduler": settings(run)}
    configs["tokenizer"] = {"spec": plain["tokenizer"]}
    if run.model is not None:
        configs["transformer"] = {"spec": plain["backbone"]}
    index: dict[str, Any] = {name: [None, None] for name in COMPONENTS}
    for name, config in configs.items():
        kind = COMPONENTS[name]
        file = SCHEDULER if kind == SETTINGS else CONFIG
        index[name] = [_COMPONENT_FILE, kind]
        yield Path(name, file), _json(kind, config)
        yield Path(name, f"{_COMPONENT_FILE}.py"), _CODE.format(home="diffusers_parts", name=kind)
    yield Path(_CODE_FILE), _CODE.format(home="diffusers_pipeline", name=PIPELINE)
    yield Path(INDEX), _json(PIPELINE, index)


def _json(kind: str, values: Mapping[str, Any]) -> str:
    named = {_CLASS: kind, _VERSION: version("diffusers"), **values}
    return json.dumps(named, indent=2, ensure_ascii=False) + "\n"
