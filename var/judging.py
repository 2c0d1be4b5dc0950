"""How well tokenizers and generators do, in figures: for a command, or while they are trained.

Several processes share the work: each looks at its part, and the figures are those of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from var.condition import Condition
from var.metrics.images import Likeness, psnr
from var.models.base import Backbone
from var.pipeline import Pipeline
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer
from var.training.health import count_codes, usage
from var.training.loss import loss


@torch.inference_mode()
def reconstructions(
    tokenizer: Tokenizer,
    schedule: Schedule,
    batches: Iterable[Tensor],
    device: torch.device,
    likeness: Likeness | None = None,
) -> dict[str, Any]:
    """Return PSNR in dB, usage and perplexity per scale, and the distance of reconstructions.

    Args:
        tokenizer, schedule: who reconstructs.
        batches: images (B, 3, H, W) in [0, 1], on the device.
        device: of all of it.
        likeness: what tells the Frechet distance; None: there is none.
    """
    vocabulary = tokenizer.terms.get("vocabulary", 0)  # none: continuous
    scales = 1 if schedule.is_raster else len(schedule)
    counts, fidelity = torch.zeros(scales, vocabulary, device=device), psnr().to(device)
    for image in batches:
        again, used = reconstruct(tokenizer, schedule, image)
        counts += used
        fidelity.update(again, image)
        if likeness is not None:
            likeness.real([image])
            likeness.fake(again, torch.full((len(image),), -1, device=device))
    figures: dict[str, Any] = {"psnr": round(float(fidelity.compute()), 3)}
    if likeness is not None:
        figures["frechet_distance"] = likeness.report()["frechet_distance"]
    return figures | (codebook(reduce(counts, reduction="sum")) if vocabulary else {})


def reconstruct(tokenizer: Tokenizer, schedule: Schedule, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, H, W) in [0, 1] made again, and how often each code served (K, V).

    K is 1 where single cells are groups; V is 0 where there is no codebook.
    """
    vocabulary = tokenizer.terms.get("vocabulary", 0)  # none: continuous
    tokens = tokenizer.encode(image, schedule)
    again = tokenizer.decode(tokenizer.blank(len(image), schedule).write(*tokens))
    groups = [torch.cat(tokens, 1)] if schedule.is_raster else tokens
    if not vocabulary:
        return again, image.new_zeros(len(groups), 0)
    return again, count_codes(groups, vocabulary)


def codebook(counts: Tensor) -> dict[str, list[float]]:
    """Return usage and perplexity per scale of counts of codes (K, V)."""
    shares, perplexity = usage(counts)
    return {
        "usage_per_scale": [round(x, 4) for x in shares.tolist()],
        "perplexity_per_scale": [round(x, 1) for x in perplexity.tolist()],
    }


@torch.no_grad()
def losses(
    backbone: Backbone,
    tokenizer: Tokenizer,
    schedule: Schedule,
    batches: Iterable[tuple[Tensor, Tensor, Rng]],
    device: torch.device,
    groups: int | None = None,
) -> dict[str, float]:
    """Return the mean loss per token, of the first `groups` groups (None: all) and of their last.

    Args:
        backbone, tokenizer, schedule: whose loss it is.
        batches: images, labels, and their streams, of which noise is drawn.
        device: of all of it.
        groups: how many are predicted.
    """
    mean, last = MeanMetric().to(device), MeanMetric().to(device)
    tail = schedule[:groups].sizes[-1]
    for image, label, rng in batches:
        each = loss(backbone, tokenizer, schedule, image, Condition(label), rng, groups)
        mean.update(each)
        last.update(each[:, -tail:])
    return {"loss": float(mean.compute()), "last_group": float(last.compute())}


def resemblance(
    pipe: Pipeline, likeness: Likeness, ids: Sequence[int], seeds: Sequence[int], batch_size: int
) -> dict[str, float]:
    """Return the Frechet distance and the label agreement of samples, as the model recommends.

    Args:
        pipe: who makes them.
        likeness: has seen the real images.
        ids, seeds: class and random stream of each sample of this process.
        batch_size: samples at a time.
    """
    likeness.forget_fakes()
    done, sampling = 0, pipe.settings()
    for images in pipe.batches(ids, seeds, sampling=sampling, batch_size=batch_size):
        label = torch.tensor(ids[done : done + len(images)], device=pipe.device)
        likeness.fake(images[:, -1], label)
        done += len(images)
    return likeness.report()
