"""Model cards: the README of a run, with the header that the Hugging Face hub reads.

What a card has stays as it is, so that cards travel with their model; what it lacks is written from
the recipe.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml
from torch import nn

from var.recipe import Recipe
from var.store import Run

LIBRARY = "var-toolkit"
_MOST_CLASSES = 20


def card(run: Run, name: str, *, license: str | None = None) -> str:
    """Return the card of a run in Markdown: its own, completed where it lacks header or text.

    A text that was written from the recipe, and never changed, is written anew.

    Args:
        run: what it is about.
        name: by which `var.load` finds it: `owner/name` on the hub, or a folder.
        license: of the weights, by its name on the hub; None: what the run's own card says, if so.
    """
    from huggingface_hub import ModelCard  # slow to import, and needed here only

    try:
        made: Any = ModelCard(run.card if run.card.startswith("---") else noted(run.card))
    except (ValueError, yaml.YAMLError):  # a header that cannot be read is not ours to change
        return run.card
    header = {**_header(run.recipe), **({"license": license} if license else {})}
    for key, value in header.items():
        if key == "license" or not made.data.get(key):
            made.data[key] = value
    text = made.text.strip()
    made.text = f"\n{text if text and not _is_ours(text, run) else _text(run, name)}\n"
    return str(made)


def noted(text: str, **header: str) -> str:
    """Return the text of a card, which has no header, with what is known of one."""
    return f"---\n{yaml.safe_dump(header)}---\n{text}"


def _header(recipe: Recipe) -> dict[str, Any]:
    kind = (recipe.backbone or recipe.tokenizer)["_target_"].rpartition(".")[2]
    tags = ["visual-autoregressive", "image-generation", kind.lower()]
    if recipe.backbone is None:
        return {"library_name": LIBRARY, "tags": tags}
    task = "text-to-image" if _reads_text(recipe) else "unconditional-image-generation"
    return {"library_name": LIBRARY, "pipeline_tag": task, "tags": tags}


def _is_ours(text: str, run: Run) -> bool:
    """Return whether a text is what would be written, under whatever name."""
    found = re.search(r'var\.load\(("(?:[^"\\]|\\.)*")\)', text)
    try:
        return bool(found) and text == _text(run, json.loads(found[1]))
    except ValueError:  # not a name as we write it
        return False


def _text(run: Run, name: str) -> str:
    rows = "\n".join(f"| {what} | {_cell(value)} |" for what, value in _facts(run).items() if value)
    kind = "A tokenizer, images to tokens and back" if run.model is None else "An image generator"
    title = f"# {' '.join(name.rpartition('/')[2].split())}\n\n{kind}, made with {LIBRARY}."
    return f"{title}\n\n| | |\n|---|---|\n{rows}\n\n{_use(run, name)}"


def _facts(run: Run) -> dict[str, str]:
    recipe, data = run.recipe, run.recipe.data
    names = ", ".join(data.classes[:_MOST_CLASSES])
    more = ", …" if len(data.classes) > _MOST_CLASSES else ""
    head: Any = getattr(run.model, "head", None)
    return {
        "generator": _part(recipe.backbone, run.model),
        "tokenizer": _part(recipe.tokenizer, run.tokenizer),
        "decides": str(recipe.schedule),
        "trained on": data.name,
        "images": f"{data.size} x {data.size} pixels" if data.size else "",
        "classes": f"{len(data.classes)}: {names}{more}" if names else "",
        "recommended sampling": head and _listed(recipe.sampling.heeded(head.heeds)),
        "recommended decoding": _listed(recipe.decoding or {}),
    }


def _cell(value: str) -> str:
    """Return a text that ends neither its cell of a table nor the row."""
    return " ".join(value.split()).replace("|", "\\|")


def _part(spec: Mapping[str, Any] | None, module: nn.Module | None) -> str:
    if spec is None or module is None:
        return ""
    count = sum(parameter.numel() for parameter in module.parameters())
    numbers = _listed({k: v for k, v in spec.items() if isinstance(v, int | float) and v})
    return f"`{spec['_target_']}`, {count / 1e6:.1f} M parameters{numbers and f': {numbers}'}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _reads_text(recipe: Recipe) -> bool:
    return (recipe.backbone or {}).get("text") is not None


def _use(run: Run, name: str) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    if run.model is None:
        return f"""```python
import var

pipe = var.load({quoted})
tokens = pipe.tokenizer.encode(images, pipe.schedule)  # images (B, 3, H, W) in [0, 1]
```"""
    shown = "condition" if _reads_text(run.recipe) else "[0]"
    return f"""In Python, on the command line, and as diffusers has it:

```python
import var

images = var.load({quoted})({shown}, seed=0)  # (B, 3, H, W) in [0, 1]
```

```bash
var-sample {shlex.quote(f"model={name}")}
```

```python
from var.diffusers_pipeline import VARPipeline

image = VARPipeline.from_pretrained({quoted})({shown}, generator=0).images[0]
```"""
