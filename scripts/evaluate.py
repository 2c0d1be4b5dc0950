"""`var-evaluate`: figures of a tokenizer's reconstructions, or of a generator's samples."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from var.data.images import ImageData, check_pixels
from var.devices import parse_precision
from var.errors import UserError
from var.evaluation import reference
from var.evaluation.generation import Generation
from var.evaluation.measure import Measurement, text
from var.evaluation.reconstruction import Distance, Reconstruction
from var.evaluation.reference import Reference
from var.evaluation.stored import Stored
from var.evaluation.subject import Subject
from var.metrics.networks import Network
from var.pipeline import Pipeline, load
from var.published import Evaluation, evaluation
from var.recipe import check_sampling
from var.scripts.command import (
    check_least,
    check_writable,
    command,
    made,
    named,
    named_decoding,
)
from var.scripts.parts import check_sizes
from var.scripts.processes import placed
from var.training.parallel import alone, chosen

log = logging.getLogger("var.scripts.evaluate")
_PER_CLASS = 1000


@dataclass
class Options:
    """The command's options and their types; `configs/evaluate.yaml` says what they mean."""

    model: str | None
    samples: str | None
    files: str | None
    data: dict[str, Any]
    features: dict[str, Any]
    mode: str
    preset: str | None
    reference: str
    number: int | None
    seed: int
    batch_size: int
    size: int | None
    spread: int
    lpips: bool
    npz: bool
    sampling: dict[str, Any]
    decoding: dict[str, Any]
    cache: dict[str, Any]
    search: dict[str, Any]
    device: str
    precision: str
    compile: bool
    statistics: str | None
    out: str | None
    progress: bool


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Measure what the configuration names, and write the figures."""
    merged = OmegaConf.merge(OmegaConf.structured(Options), cfg)
    options = cast(Options, OmegaConf.to_object(merged))
    check(options)
    published = evaluation(str(options.model)) if options.preset else None
    # While one looks at real images, or tells the scores, the others wait.
    device, _ = placed(options.device, timedelta(days=1))
    network: Network | None = made(options.features).to(device) if options.features else None
    pipe = loaded(options, device) if options.model else None
    data = real(options) if options.data else None
    subject = subject_of(options, pipe, network, data, published)
    with ExitStack() as stack:
        # Nobody asks for the folder again: it goes when all is done.
        place = options.out or chosen(stack.enter_context(tempfile.TemporaryDirectory()))
        measurement = Measurement(
            subject,
            network,
            Path(place),
            model=str(options.model or options.samples),
            pipe=pipe,
            device=device,
            batch_size=options.batch_size,
            preset=options.preset,
        )
        against: list[Reference | None] = []
        # Before the long work, in which it could be missed.
        alone(lambda: against.append(compared(options, network, data, subject.size)))
        measurement.fill(options.progress)

        def finish() -> None:
            report = measurement.report(against[0], draws=options.spread)
            if options.out is not None:
                measurement.write(report, published, images=options.npz)
            print(text(report, published))

        alone(finish)


def check(options: Options) -> None:
    """Check what can be checked before anything is loaded.

    Raises:
        UserError: a value makes no sense; the message names it.
    """
    if (options.model is None) == (options.samples is None):
        raise UserError("say what to measure: model=NAME, or samples=FILE.npz, and not both")
    if options.mode not in ("auto", "reconstruction", "generation"):
        raise UserError(f"mode={options.mode}: use auto, reconstruction or generation")
    if options.preset not in (None, "paper") or (options.preset and not options.model):
        raise UserError(f"preset={options.preset}: use paper, of a published model, or null")
    if options.reference not in ("test", "train") and not options.reference.endswith(".npz"):
        raise UserError(f"reference={options.reference}: use test, train or a file *.npz")
    drawn = [options.number, *options.sampling.values()]
    if options.samples and (options.mode == "reconstruction" or drawn != [None] * len(drawn)):
        raise UserError(f"samples={options.samples} are drawn already: leave out how to draw them")
    check_least(options, {"number": 1, "seed": 0, "batch_size": 1, "size": 1, "spread": 0})
    check_sampling(options.sampling)
    if options.npz and (options.out is None or options.samples or options.mode == "reconstruction"):
        raise UserError("npz=true writes samples of a model to the folder out=…: say both")
    if options.out is not None:
        check_writable(Path(options.out), f"out={options.out}")


def loaded(options: Options, device: torch.device) -> Pipeline:
    """Return the pipeline of the model that is measured."""
    dtype = parse_precision(options.precision, device)
    return load(
        str(options.model), device=device, dtype=dtype, compile=options.compile, files=options.files
    )


def real(options: Options) -> ImageData:
    """Return the real images, without crops and flips.

    Raises:
        UserError: there is no such split, or it holds codes.
    """
    split = "test" if options.reference.endswith(".npz") else options.reference
    if split not in options.data:
        raise UserError(f"reference={split}: this data has no {split} split")
    data: ImageData = made(options.data[split]).plain()
    check_pixels(data, "var-evaluate")
    return data


def compared(
    options: Options, network: Network | None, data: ImageData | None, size: int
) -> Reference | None:
    """Return what images of a size are compared with; None: there is no network to do it.

    Raises:
        UserError: there are no real images, or they are of another size.
    """
    if network is None:
        return None
    home = Path(options.statistics).expanduser() if options.statistics else None
    how: dict[str, Any] = {"batch_size": options.batch_size, "home": home}
    if options.reference.endswith(".npz"):
        found = reference.of_file(options.reference, network, **how)
    elif data is not None:
        found = reference.of_data(data, options.reference, network, **how)
    else:
        raise UserError("there is nothing to compare with: say data=… or reference=FILE.npz")
    if found.size not in (0, size):
        raise UserError(
            f"{found.name} has images of {found.size} pixels, those to be measured have {size}: "
            f"say size={found.size}, which resizes samples, or take another reference"
        )
    return found


def subject_of(
    options: Options,
    pipe: Pipeline | None,
    network: Network | None,
    data: ImageData | None,
    published: Evaluation | None,
) -> Subject:
    """Return what is measured.

    Raises:
        UserError: what it takes is not there.
    """
    generation = options.mode == "generation" or (
        options.mode == "auto" and (pipe is None or pipe.run.model is not None)
    )
    if published is not None and generation != bool(published.sampling):
        kind = "generation" if published.sampling else "reconstruction"
        raise UserError(
            f"preset=paper: the figures of {options.model} are of {kind}, say mode=auto"
        )
    if not generation and pipe is not None:
        if data is None:
            raise UserError("there is nothing to reconstruct: say data=…")
        if options.npz:
            raise UserError("npz=true writes samples, these are reconstructions: leave it out")
        near = lpips(pipe.device) if options.lpips else None
        check_sizes(pipe.tokenizer, pipe.schedule, data)
        return Reconstruction(pipe, data, network, near, len(data.unusable))
    if network is None:
        raise UserError("samples are measured by what a network sees in them: say features=…")
    if pipe is None:
        return Stored.read(str(options.samples), network, options.size)
    return samples(options, pipe, network, published)


def samples(
    options: Options, pipe: Pipeline, network: Network, published: Evaluation | None
) -> Generation:
    """Return the samples that are drawn: as published, unless the options say otherwise."""
    ours = {k: v for k, v in options.sampling.items() if v is not None}
    theirs = dict(published.sampling) if published else {}
    return Generation(
        pipe,
        network,
        per_class=options.number or (published and published.per_class) or _PER_CLASS,
        seed=options.seed,
        sampling=pipe.settings(**cast(Any, theirs | ours)),
        decoding=made(options.decoding)(pipe),
        cache=made(options.cache)(pipe),
        search=made(options.search),
        named={
            "decoding": named_decoding(options.decoding, pipe.run.recipe),
            "cache": named(options.cache),
            "search": named(options.search),
        },
        batch_size=options.batch_size,
        resize=options.size or (published.size if published else None),
        keep=options.npz,
    )


def lpips(device: torch.device) -> Distance:
    """Return LPIPS by the network of its paper, AlexNet.

    Raises:
        UserError: its package is missing, or its network cannot be fetched.
    """
    from var.tokenizers.perceptual import Perceptual

    net: Any = Perceptual(net="alex").lpips.to(device).eval()
    return lambda image, again: net(image * 2 - 1, again * 2 - 1).flatten()


if __name__ == "__main__":
    main()
