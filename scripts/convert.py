"""`var-convert`: a model from one form of files to another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch.export import ExportedProgram

from var.bars import progress_bar
from var.devices import parse_precision
from var.errors import UserError
from var.exporting import export_decoder, export_step
from var.pipeline import Pipeline, load
from var.scripts.command import check_writable, command
from var.sharing import LAYOUTS
from var.systems.states import published_states

log = logging.getLogger("var.scripts.convert")

_MANY = 32  # groups, each of which is a program with all weights


@dataclass
class Options:
    """The command's options and their types; `configs/convert.yaml` says what they mean."""

    model: str
    files: str | None
    layout: str
    groups: list[int] | None
    license: str | None
    precision: str
    out: str
    progress: bool


@command("convert")
def main(cfg: DictConfig) -> None:
    """Write what the configuration names in the form that it asks for."""
    merged = OmegaConf.merge(OmegaConf.structured(Options), cfg)
    options = cast(Options, OmegaConf.to_object(merged))
    out = Path(options.out)
    check(options, out)
    dtype = parse_precision(options.precision, torch.device("cpu"))
    pipe = load(options.model, dtype=dtype, files=options.files)
    if options.layout in LAYOUTS:
        pipe.save(out, layout=options.layout, license=options.license)
    elif options.layout == "published":
        publish(pipe, out)
    else:
        export(pipe, out, options.groups, options.progress)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for path in files:
        log.info("%12s  %s", f"{path.stat().st_size:,}", path)
    log.info("%12s  bytes in %d files", f"{sum(p.stat().st_size for p in files):,}", len(files))


def check(options: Options, out: Path) -> None:
    """Check what can be checked before the model is loaded.

    Raises:
        UserError: there is no such layout, or `groups` or `license` mean nothing to it; there is
            something at `out`, or nothing can be written there.
    """
    layouts = (*LAYOUTS, "published", "export")
    if options.layout not in layouts:
        raise UserError(f"unknown layout={options.layout}: there are {', '.join(layouts)}")
    if options.groups is not None and options.layout != "export":
        raise UserError(f"groups are for layout=export, not for layout={options.layout}")
    if options.license is not None and options.layout not in LAYOUTS:
        raise UserError(f"layout={options.layout} has no card that would name a license")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out={out} is there already: name a new folder, or an empty one")
    check_writable(out, str(out))


def publish(pipe: Pipeline, out: Path) -> None:
    """Write the published state of each part to a safetensors file called by its prefix."""
    states = published_states(pipe.run)
    out.mkdir(parents=True, exist_ok=True)
    for prefix, state in states.items():
        tensors = {key: tensor.detach().contiguous() for key, tensor in state.items()}
        save_file(tensors, out / f"{prefix}.safetensors", metadata={"format": "pt"})


def export(pipe: Pipeline, out: Path, groups: Sequence[int] | None, bar: bool) -> None:
    """Write the decoder, and the steps of some groups, of all by default, as programs.

    Raises:
        UserError: no such group; or so many that they are to be named.
    """
    if groups is None and len(pipe.schedule) > _MANY and pipe.run.model is not None:
        raise UserError(
            f"this model decides {len(pipe.schedule)} groups, and each would be a program with all "
            "weights: name those that you want, groups=[0,1]"
        )
    chosen = range(len(pipe.schedule)) if groups is None else groups
    steps = {} if pipe.run.model is None else {f"step-{k:03}": k for k in chosen}
    made = dict[str, ExportedProgram]()
    for name, group in progress_bar(steps.items(), shown=bar, desc="steps", unit="program"):
        made[name] = export_step(pipe, group)
    made["decoder"] = export_decoder(pipe)
    out.mkdir(parents=True, exist_ok=True)
    for name, program in made.items():
        torch.export.save(program, out / f"{name}.pt2")


if __name__ == "__main__":
    main()
