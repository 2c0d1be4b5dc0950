"""Where runs come from: a folder, the zoo, the published checkpoints, the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of whichever client it has)
)
from torch import Tensor, nn

from var import cards, diffusers_layout, diffusers_vae, store
from var.errors import UserError
from var.published import (
    CHECKPOINTS,
    Checkpoint,
    Parts,
    as_if_released,
    blueprint,
    load_published,
)
from var.recipe import Data, Recipe
from var.sampling import Sampling
from var.store import Run
from var.untrained import untrained

_ZOO = Path(__file__).parent / "zoo"
# What tells whether there is a run: repositories may hold much more, in files of any size.
_SIGNS = [
    store.CONFIG,
    diffusers_layout.INDEX,
    *((home / diffusers_layout.CONFIG).as_posix() for home in diffusers_vae.HOMES),
]
_RANDOM = "random/"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def shipped() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.name for path in _ZOO.iterdir() if store.exists(path))


def find(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    files: str | Path | None = None,
) -> Run:
    """Return the run that a name stands for.

    Looked up in this order: a run folder, or a run in diffusers' layout; a folder in which
    diffusers saved an `AutoencoderKL`, alone or as the `vae` of a pipeline (it becomes a run with a
    tokenizer); a shipped name; a published name (downloaded the first time); `owner/name` on the
    Hugging Face hub, or `owner/name@revision`, a folder of any of these kinds (likewise, never more
    than its files).
    `random/<published name>` is a model of that size with random weights, always the same ones;
    `random/var-d<depth>` and `random/mvar-d<depth>` may be of any depth, and `@<pixels>` behind the
    name of a model that decides scales says for images of which size.

    Args:
        name: what to look up.
        device: where the weights go.
        dtype: of the generator, see `store.load`.
        files: folder that is looked into for the files of published checkpoints before the hub is.

    Raises:
        UserError: there is nothing of that name, or what is there is damaged.
    """
    place = Path(name)
    if store.exists(place):
        return store.load(place, device=device, dtype=dtype)
    if diffusers_layout.exists(place):
        return diffusers_layout.load(place, device=device, dtype=dtype)
    if (home := diffusers_vae.home(place)) is not None:
        return diffusers_vae.load(place / home, device)
    if str(name) in shipped():
        run = store.load(_ZOO / name, device=device, dtype=dtype)
        return replace(run, card=cards.noted(run.card, license="mit"))  # this package's
    if str(name) in CHECKPOINTS:
        return _published(str(name), torch.device(device), dtype, files)
    if str(name).startswith(_RANDOM) and not place.exists():
        return _random(str(name).removeprefix(_RANDOM), torch.device(device), dtype)
    if place.exists():
        raise UserError(
            f"{name} is not a run folder: it holds no {store.CONFIG}, and no AutoencoderKL either"
        )
    if found := _HUB_ID.fullmatch(str(name)):
        return _from_hub(found[1], found[2], device, dtype)
    raise UserError(_unknown(str(name)))


def outline(name: str | Path) -> Recipe | None:
    """Return how the parts of a run are built, without its weights; None if only they tell.

    Args:
        name: as for `find`, but nothing is downloaded.

    Raises:
        UserError: the configuration of a run folder makes no sense.
    """
    place, plain = Path(name), str(name).removeprefix(_RANDOM)
    if str(name) in shipped() and not store.exists(place):
        place = _ZOO / name
    if store.exists(place):
        return store.read_recipe(place)
    try:
        return _recipe(blueprint(plain), as_if_released(plain))
    except UserError:  # of nothing that is published, or published as weights only
        return None


def companion(
    run: Run,
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    files: str | Path | None = None,
    any_schedule: bool = False,
) -> Run:
    """Return the run of a generator that works along with another one, on one tokenizer.

    Args:
        run: the other one; its tokenizer is kept, that of the companion is let go.
        name: of the companion.
        device, dtype, files: see `find`.
        any_schedule: it may decide images on other grids: its weights are wanted, to begin with.

    Raises:
        UserError: there is no generator of that name, or tokens mean something else to it.
    """
    found = find(name, device=device, dtype=dtype, files=files)
    if found.model is None:
        raise UserError(f"{name} is a tokenizer without a generator")
    if found.recipe.schedule != run.recipe.schedule and not any_schedule:
        raise UserError(
            f"{name} cannot work along: it decides images on the grids "
            f"{list(found.recipe.schedule.grids)} instead of {list(run.recipe.schedule.grids)}"
        )
    if _rules(run.tokenizer) != _rules(found.tokenizer):
        raise UserError(f"{name} cannot work along: its tokenizer adds up tokens by other rules")
    ours, theirs = _meaning(run.tokenizer), _meaning(found.tokenizer)
    if any_schedule:  # what belongs to scales differs with their number
        there = {key for key in ours if key in theirs and ours[key].shape == theirs[key].shape}
        ours, theirs = ({key: each[key] for key in there} for each in (ours, theirs))
    alike = {key for key, tensor in theirs.items() if key in ours and _same(ours[key], tensor)}
    if odd := sorted((ours.keys() | theirs.keys()) - alike):
        raise UserError(
            f"{name} cannot work along: its tokenizer is another one ({odd[0]} differs). "
            "Take a generator that was trained on the same tokenizer"
        )
    recipe = replace(found.recipe, tokenizer=run.recipe.tokenizer)
    return Run(recipe, run.tokenizer, found.model, found.budget)


@contextmanager
def hub_errors(message: str) -> Iterator[None]:
    """Let what goes wrong on the hub, or on the way there, end in one line.

    Raises:
        UserError: something did; the message begins with the one given.
    """
    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:
        raise UserError(
            f"{message}: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error


def _published(
    name: str, device: torch.device, dtype: torch.dtype, files: str | Path | None
) -> Run:
    parts, checkpoint = load_published(name, files), CHECKPOINTS[name]
    assert parts.tokenizer is not None
    recipe = replace(_recipe(parts, checkpoint), decoding=checkpoint.decoding)
    model = parts.model and parts.model.to(device, dtype).eval()
    tokenizer = parts.tokenizer.to(device, torch.float32).eval()
    return Run(recipe, tokenizer, model, card=cards.noted("", base_model=checkpoint.repository))


def _random(name: str, device: torch.device, dtype: torch.dtype) -> Run:
    recipe, model = _recipe(blueprint(name), as_if_released(name)), None
    tokenizer = untrained(recipe.tokenizer, f"{name}: tokenizer", device=device)
    if recipe.backbone is not None:
        model = untrained(recipe.backbone, f"{name}: backbone", device=device, dtype=dtype)
    return Run(recipe, tokenizer, model)


def _recipe(parts: Parts, checkpoint: Checkpoint) -> Recipe:
    assert parts.tokenizer_spec is not None and parts.schedule is not None
    reads_text = (parts.model_spec or {}).get("text") is not None
    classes = () if reads_text else _imagenet_classes()
    return Recipe(
        tokenizer=parts.tokenizer_spec,
        schedule=parts.schedule,
        backbone=parts.model_spec,
        data=Data("texts" if reads_text else "imagenet", classes, checkpoint.size),
        sampling=Sampling(**checkpoint.sampling),
    )


def _meaning(tokenizer: nn.Module) -> dict[str, Tensor]:
    """Return what decides the meaning of tokens: the quantizer's weights, or all if it has none."""
    return getattr(tokenizer, "quantizer", tokenizer).state_dict()


def _rules(tokenizer: nn.Module) -> object:
    return getattr(getattr(tokenizer, "quantizer", tokenizer), "rules", None)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours))


def _imagenet_classes() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights  # slow to import, and needed here only

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _from_hub(
    name: str, revision: str | None, device: torch.device | str, dtype: torch.dtype
) -> Run:
    fetch = partial(_download, name, revision)
    signs = fetch(_SIGNS)
    if store.exists(signs):
        return store.load(fetch(store.FILES), device=device, dtype=dtype)
    if diffusers_layout.exists(signs):
        return diffusers_layout.load(fetch(diffusers_layout.FILES), device=device, dtype=dtype)
    if (home := diffusers_vae.home(signs)) is None:
        raise UserError(
            f"{name} on the Hugging Face hub is no run: it holds no {store.CONFIG}, no "
            f"{diffusers_layout.INDEX} of ours, and no AutoencoderKL of diffusers either"
        )
    files = [
        (home / file).as_posix() for file in (diffusers_layout.CONFIG, diffusers_layout.WEIGHTS)
    ]
    return diffusers_vae.load(fetch(files) / home, device)


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    with hub_errors(f"there is no run folder {name}, and none to be had on the Hugging Face hub"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def _unknown(name: str) -> str:
    names = [*shipped(), *CHECKPOINTS]
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known names are {', '.join(names) or 'none'}"
    return f"there is no run folder and no model named {name} ({hint})"
