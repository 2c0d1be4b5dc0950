"""The scores of an evaluation, from what was found out of each image."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import TypedDict

from torch import Tensor

from var.bars import progress_bar
from var.errors import UserError
from var.evaluation.reference import Reference
from var.metrics.networks import Network
from var.metrics.scores import Moments, frechet, inception_score, precision_recall, spread


class Value(TypedDict):
    """A score, and how far it may be off.

    Attributes:
        value: the score.
        spread: one standard deviation of it by chance; None: not known.
    """

    value: float
    spread: float | None


Scores = dict[str, Value]
log = logging.getLogger(__name__)
_NEIGHBOURS, _SPLITS = 3, 10  # as published


def of_features(
    found: Mapping[str, Tensor], reference: Reference, network: Network, draws: int
) -> Scores:
    """Return what features tell: Frechet distances, precision, recall, the Inception Score.

    Args:
        found: of N images `label` (N,), `features` (N, D) and, of some networks, `logits`
            (N, classes) and `spatial` (N, S).
        reference: what they are compared with.
        network: what saw them.
        draws: of the bootstrap that gives Frechet distances their spread.

    Raises:
        UserError: there are fewer than two images.
    """
    labels, features = found["label"], found["features"]
    if len(labels) < 2:
        raise UserError(f"{len(labels)} images are too few to be measured: draw more")
    if len(labels) <= features.shape[1]:
        log.warning(
            "%s of %d images, fewer than its %d features, is of little worth",
            network.name, len(labels), features.shape[1],
        )  # fmt: skip
    distances = {network.name: (features, reference.moments)}
    if "spatial" in found and reference.spatial is not None:
        distances["sFID"] = (found["spatial"], reference.spatial)
    scores: Scores = {}
    total = draws * len(distances)
    with progress_bar(total=total, desc="spread", unit="draw", shown=bool(draws)) as bar:
        for name, (seen, real) in distances.items():
            distance = partial(_distance, seen, real)
            off = spread(labels, draws, distance, bar.update)
            scores[name] = {"value": frechet(Moments.of(seen), real), "spread": off}
    if reference.shown is not None and min(len(features), len(reference.shown)) > _NEIGHBOURS:
        precision, recall = precision_recall(features, reference.shown, _NEIGHBOURS)
        scores["precision"] = {"value": precision, "spread": None}
        scores["recall"] = {"value": recall, "spread": None}
    if "logits" in found and not network.labelled and len(labels) >= _SPLITS:
        value, off = inception_score(found["logits"], _SPLITS)
        scores["IS"] = {"value": value, "spread": off}
    return scores


def agreement(logits: Tensor, label: Tensor) -> Value:
    """Return the share of images (N,) that a classifier gives their label, logits (N, classes)."""
    return mean((logits.argmax(dim=-1) == label).float())


def mean(values: Tensor) -> Value:
    """Return the mean of values (N,) of images, and its standard error."""
    several = len(values) > 1
    off = float(values.double().std() / math.sqrt(len(values))) if several else None
    return {"value": float(values.double().mean()), "spread": off}


def rounded(scores: Scores) -> Scores:
    """Return scores to six decimals: what comes behind them depends on the machine."""
    return {
        name: {
            "value": round(each["value"], 6),
            "spread": None if each["spread"] is None else round(each["spread"], 6),
        }
        for name, each in scores.items()
    }


def _distance(seen: Tensor, real: Moments, numbers: Tensor) -> float:
    return frechet(Moments.of(seen[numbers]), real)
