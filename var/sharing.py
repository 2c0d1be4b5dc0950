"""Where runs go: to a folder, in our layout or that of others, and to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from huggingface_hub import HfApi

from var import cards, diffusers_layout, store
from var.errors import UserError
from var.hub import hub_errors
from var.store import Run

LAYOUTS = {"run": store.save, "diffusers": diffusers_layout.save}
_EXISTS = {"run": store.exists, "diffusers": diffusers_layout.exists}
# What is taken away from the hub unless it is written anew: a repository holds one run.
_OURS = [*store.FILES, *diffusers_layout.FILES, *diffusers_layout.CODE_FILES]


class Form(TypedDict, total=False):
    """In what form a run is written.

    Attributes:
        layout: `run`, a run folder, which is what there is by default, or `diffusers`.
        license: of the weights, for the card, by its name on the hub: `mit`, for example.
    """

    layout: str
    license: str | None


def save(
    folder: str | Path,
    run: Run,
    *,
    name: str = "",
    layout: str = "run",
    license: str | None = None,
) -> None:
    """Write a run, with a card unless the folder has one; other files in it are left alone.

    Args:
        folder: made if it is not there.
        run: what to write.
        name: by which the card calls it; by default the folder's.
        layout, license: see `Form`.

    Raises:
        UserError: unknown layout, the folder holds a run in another one, or cannot be written.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout}: there are {', '.join(LAYOUTS)}")
    for other, exists in _EXISTS.items():
        if other != layout and exists(Path(folder)):
            raise UserError(
                f"{folder} holds a run in the layout {other}: name another folder, or remove it"
            )
    card = cards.card(run, name or Path(folder).resolve().name, license=license)
    LAYOUTS[layout](folder, replace(run, card=card))


def push(
    run: Run,
    repository: str,
    *,
    private: bool = False,
    layout: str = "run",
    license: str | None = None,
) -> str:
    """Upload what `save` writes to `owner/name` on the Hugging Face hub; return its address.

    A run that is there already, in whatever layout, is replaced; other files are left alone.

    Raises:
        UserError: unknown layout; the hub refuses, or cannot be reached.
    """
    with hub_errors(f"cannot upload to {repository}"), tempfile.TemporaryDirectory() as folder:
        save(folder, run, name=repository, layout=layout, license=license)
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, delete_patterns=_OURS)
    return str(address)
