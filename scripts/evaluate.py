"""`var-evaluate`: figures of a tokenizer's reconstructions, or of a generator's samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm.auto import tqdm

import var
from var import judging
from var.atomic import write
from var.bench.stopwatch import finisher
from var.data.batches import loader
from var.data.images import ImageData, check_pixels
from var.decoding.counted import Counted
from var.devices import parse_device, parse_precision
from var.errors import UserError
from var.metrics.features import SmallClassifier
from var.metrics.images import Likeness
from var.pipeline import Pipeline, load
from var.scripts.command import check_sampling, check_writable, command, made

log = logging.getLogger("var.scripts.evaluate")


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Measure what the configuration names, and write the figures."""
    if cfg.mode not in ("auto", "reconstruction", "generation"):
        raise UserError(f"mode={cfg.mode}: use auto, reconstruction or generation")
    if cfg.reference not in ("test", "train"):
        raise UserError(f"reference={cfg.reference}: use test or train")
    if cfg.out is not None:
        check_writable(Path(cfg.out).parent, f"out={cfg.out}")
    check_sampling(cfg.sampling)
    device = parse_device(cfg.device)
    dtype = parse_precision(cfg.precision, device)
    pipe = load(cfg.model, device=device, dtype=dtype, compile=cfg.compile, files=cfg.files)
    network: SmallClassifier = made(cfg.features).to(pipe.device)
    data: ImageData = made(cfg.data[cfg.reference]).plain()
    check_pixels(data, "var-evaluate")
    known = len(data.unusable)  # files that are not counted among the images
    generation = cfg.mode == "generation" or (cfg.mode == "auto" and pipe.run.model is not None)
    figures = (samples if generation else reconstructions)(cfg, pipe, network, data)
    images = len(data) + known - len(data.unusable)
    report = {
        "model": str(cfg.model),
        "reference": f"{data.name} {cfg.reference}, {images} images",
        "unusable": len(data.unusable),
        "version": var.__version__,
        **({} if generation else {"images": images}),
        **figures,
    }
    text = json.dumps(report, indent=2)
    log.info("%s", text)
    if cfg.out is not None:
        write(Path(cfg.out), text + "\n")


def real_images(data: ImageData, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield all images of a data set in batches."""
    lists = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    batches = loader(data, map(list, lists))
    for image, _ in tqdm(batches, total=len(lists), desc="real images", unit="batch"):
        if len(image):  # there is none where all are unusable
            yield image.to(device)


def reconstructions(
    cfg: DictConfig, pipe: Pipeline, network: SmallClassifier, data: ImageData
) -> dict[str, Any]:
    """Return the figures of reconstructions of all images."""
    images = real_images(data, cfg.batch_size, pipe.device)
    likeness = Likeness(network)
    return judging.reconstructions(pipe.tokenizer, pipe.schedule, images, pipe.device, likeness)


def samples(
    cfg: DictConfig, pipe: Pipeline, network: SmallClassifier, data: ImageData
) -> dict[str, Any]:
    """Return the Frechet distance of samples, as many of each class, and their label agreement."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg.sampling, resolve=True)  # type: ignore[assignment]
    sampling = pipe.settings(**settings)
    likeness = Likeness(network)
    likeness.real(real_images(data, cfg.batch_size, pipe.device))
    ids = [label for label in range(pipe.class_count) for _ in range(cfg.number)]
    seeds, done, timed, seconds = range(cfg.seed, cfg.seed + len(ids)), 0, 0, 0.0
    finish = finisher(pipe.device)
    decoding, calls = Counted(made(cfg.decoding)(pipe)), list[int]()
    batches = pipe.batches(
        ids,
        seeds,
        sampling=sampling,
        decoding=decoding,
        cache=made(cfg.cache)(pipe),
        batch_size=cfg.batch_size,
        progress=True,
    )
    while done < len(ids):
        start = perf_counter()
        images = next(batches)[:, -1]
        finish()
        calls.append(decoding.runs[-1])  # of several attempts, that which memory sufficed for
        if done or len(images) == len(ids):  # the first of several pays for warming up
            seconds, timed = seconds + perf_counter() - start, timed + len(images)
        label = torch.tensor(ids[done : done + len(images)], device=pipe.device)
        likeness.fake(images, label)
        done += len(images)
    pace = {
        "images_per_second": round(timed / seconds, 2),
        "calls_per_batch": round(sum(calls) / len(calls), 2),
    }
    figures = {**likeness.report(), **pace}
    return {"images": len(ids), "seed": cfg.seed, "sampling": vars(sampling), **figures}


if __name__ == "__main__":
    main()
