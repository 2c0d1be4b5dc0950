"""Where runs go: to a folder, in our layout or that of others, and to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from huggingface_hub import HfApi

from var import cards, diffusers_layout, store
from var.errors import UserError
from var.hub import hub_errors
from var.store import Run

LAYOUTS = {"run": store.save, "diffusers": diffusers_layout.save}


class Form(TypedDict, total=False):
    """In what form a run is written.

    Attributes:
        layout: `run`, a run folder, which is what there is by default, or `diffusers`.
        license: of the weights, for the card, by its name on the hub: `mit`, for example.
    """

    layout: str
    license: str | None


def save(folder: str | Path, run: Run, *, name: str = "", **form: Unpack[Form]) -> None:
    """Write a run, with a card unless the folder has one; other files in it are left alone.

    Args:
        folder: made if it is not there.
        run: what to write.
        name: by which the card calls it; by default the folder's.
        form: see `Form`.

    Raises:
        UserError: unknown layout, or the folder cannot be written.
    """
    layout = form.get("layout", "run")
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout}: there are {', '.join(LAYOUTS)}")
    card = cards.card(run, name or Path(folder).resolve().name, license=form.get("license"))
    LAYOUTS[layout](folder, replace(run, card=card))


def push(run: Run, repository: str, *, private: bool = False, **form: Unpack[Form]) -> str:
    """Upload what `save` writes to `owner/name` on the Hugging Face hub; return its address.

    Raises:
        UserError: unknown layout; the hub refuses, or cannot be reached.
    """
    with hub_errors(f"cannot upload to {repository}"), tempfile.TemporaryDirectory() as folder:
        save(folder, run, name=repository, **form)
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    return str(address)
