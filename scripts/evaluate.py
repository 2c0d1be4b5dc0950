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
from var.atomic import write
from var.bench.stopwatch import finisher
from var.data.images import ImageData, check_pixels, crop_fashion_mnist
from var.decoding.counted import Counted
from var.devices import parse_device, parse_precision
from var.errors import UserError
from var.metrics.features import SmallClassifier
from var.metrics.images import Likeness, psnr
from var.pipeline import Pipeline, load
from var.scripts.command import check_sampling, check_writable, command, made
from var.training.health import count_codes, usage

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
    data: ImageData = made(cfg.data[cfg.reference])
    check_pixels(data, "var-evaluate")
    generation = cfg.mode == "generation" or (cfg.mode == "auto" and pipe.run.model is not None)
    figures = (samples if generation else reconstructions)(cfg, pipe, network, data)
    report = {
        "model": str(cfg.model),
        "reference": f"{data.name} {cfg.reference}, {len(data)} images",
        "version": var.__version__,
        **figures,
    }
    text = json.dumps(report, indent=2)
    log.info("%s", text)
    if cfg.out is not None:
        write(Path(cfg.out), text + "\n")


def real_images(data: ImageData, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield all images of a data set in batches."""
    for start in tqdm(range(0, len(data), size), desc="real images", unit="batch"):
        yield data.__getitems__(range(start, min(start + size, len(data))))[0].to(device)


@torch.inference_mode()
def reconstructions(
    cfg: DictConfig, pipe: Pipeline, network: SmallClassifier, data: ImageData
) -> dict[str, Any]:
    """Return PSNR, usage and perplexity per scale, and the Frechet distance of reconstructions."""
    tokenizer, schedule = pipe.tokenizer, pipe.schedule
    vocabulary = tokenizer.terms.get("vocabulary", 0)  # none: continuous
    scales = 1 if schedule.is_raster else len(schedule)
    counts = torch.zeros(scales, vocabulary, device=pipe.device)
    fidelity, likeness = psnr().to(pipe.device), Likeness(network, crop_fashion_mnist)
    for image in real_images(data, cfg.batch_size, pipe.device):
        tokens = tokenizer.encode(image, schedule)
        if vocabulary:
            counts += count_codes([torch.cat(tokens, 1)] if scales == 1 else tokens, vocabulary)
        again = tokenizer.decode(tokenizer.blank(len(image), schedule).write(*tokens))
        fidelity.update(again, image)
        likeness.real([image])
        likeness.fake(again, torch.full((len(image),), -1, device=pipe.device))
    return {
        "images": len(data),
        "psnr": round(float(fidelity.compute()), 3),
        "frechet_distance": likeness.report()["frechet_distance"],
        **(codebook(counts) if vocabulary else {}),
    }


def codebook(counts: Tensor) -> dict[str, list[float]]:
    """Return usage and perplexity per scale of counts of codes (K, V)."""
    share, perplexity = usage(counts)
    return {
        "usage_per_scale": [round(x, 4) for x in share.tolist()],
        "perplexity_per_scale": [round(x, 1) for x in perplexity.tolist()],
    }


def samples(
    cfg: DictConfig, pipe: Pipeline, network: SmallClassifier, data: ImageData
) -> dict[str, Any]:
    """Return the Frechet distance of samples, as many of each class, and their label agreement."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg.sampling, resolve=True)  # type: ignore[assignment]
    sampling = pipe.settings(**settings)
    likeness = Likeness(network, crop_fashion_mnist)
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
