"""Scaling laws: how the loss falls with parameters and tokens, from runs of several sizes.

The law is `L(N, D) = E + A / N^alpha + B / D^beta`, the loss in nats per token; to train N
parameters on D tokens takes 6 N D operations.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from math import exp
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import logsumexp, softmax
from torch import nn

from var import store
from var.errors import UserError
from var.recipe import build
from var.training.optim import decays
from var.training.records import METRICS

Numbers = NDArray[np.float64]
# Of the starts of a fit, in all combinations.
_FLOORS, _EXPONENTS = (0.3, 0.9), (0.2, 0.8)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A loss that was reached.

    Attributes:
        run: its name.
        parameters: of the model, N; see `count`.
        tokens: trained on so far, D.
        loss: in nats per token.
    """

    run: str
    parameters: int
    tokens: int
    loss: float

    @property
    def compute(self) -> int:
        """Operations of the training so far."""
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Law:
    """`L(N, D) = floor + of_parameters / N^alpha + of_tokens / D^beta`."""

    floor: float
    of_parameters: float
    alpha: float
    of_tokens: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss of a model with so many parameters after so many tokens."""
        lack = self.of_parameters * parameters**-self.alpha
        return self.floor + lack + self.of_tokens * tokens**-self.beta

    def best(self, compute: float) -> tuple[float, float]:
        """Return the parameters and tokens with the lowest loss for so many operations."""
        ratio = self.alpha * self.of_parameters / (self.beta * self.of_tokens)
        both = self.alpha + self.beta
        parameters = ratio ** (1 / both) * (compute / 6) ** (self.beta / both)
        return parameters, compute / 6 / parameters


def count(model: nn.Module) -> int:
    """Return a model's parameters without embeddings and vectors: those of its matrices.

    Norms, biases and positions are a small part; embeddings are looked up, not multiplied by.
    """
    return sum(
        parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if decays(module, name)
    )


def collect(
    folder: str | Path, *, loss: str = "train/total", bins: int = 8, after: float = 0.1
) -> list[Point]:
    """Return the points of a run of a generator, by increasing tokens.

    Its figures are averaged over `bins` stretches of equal ratio of tokens: what single batches say
    is noise. They are points of one law only if the rate was constant, as where it falls the loss
    falls too.

    Args:
        folder: of the run.
        loss: which of the figures in `metrics.jsonl`.
        bins: how many points at most.
        after: share of the run that is left out: its warm-up.

    Raises:
        UserError: it is no run of a generator, or has no such figures.
    """
    folder = Path(folder)
    recipe = store.read_recipe(folder)
    if recipe.backbone is None:
        raise UserError(f"{folder} holds a tokenizer: scaling laws are of generators")
    tokens, losses = _figures(folder / METRICS, loss)
    tokens = tokens * sum(recipe.schedule.sizes)
    known = {"run": folder.name, "parameters": count(build(recipe.backbone, str(folder)))}
    edges = np.geomspace(after * tokens[-1], tokens[-1], bins + 1)
    places = np.clip(np.searchsorted(edges, tokens) - 1, None, bins - 1)
    points = list[Point]()
    for place in range(bins):
        if (inside := places == place).any():
            middle = round(float(np.exp(np.log(tokens[inside]).mean())))
            points.append(Point(**known, tokens=middle, loss=float(losses[inside].mean())))
    return points


def fit(points: Sequence[Point], *, outlier: float = 0.01) -> Law:
    """Return the law that fits best: robust least squares of logarithms, from many starts.

    Args:
        points: of three sizes and three numbers of tokens at least.
        outlier: relative error from which on a point counts less.

    Raises:
        UserError: there are too few points.
    """
    sizes, spans = ({getattr(p, key) for p in points} for key in ("parameters", "tokens"))
    if len(points) < 6 or len(sizes) < 3 or len(spans) < 3:
        raise UserError(
            "a scaling law needs 6 points or more, of 3 sizes and 3 numbers of tokens; there are "
            f"{len(points)} points of {len(sizes)} sizes and {len(spans)} numbers of tokens"
        )
    logs = np.log([(p.parameters, p.tokens, p.loss) for p in points]).T
    middle = logs[:2].mean(axis=1)  # around it a term depends little on its exponent
    x, y = logs[:2] - middle[:, None], logs[2]
    low = y.min()
    bounds = [low - 10, low - 20, 0, low - 20, 0], [low, low + 20, 3, low + 20, 3]
    found = [
        least_squares(
            _error,
            [low + np.log(floor), low - 1, alpha, low - 1, beta],
            _slope,  # pyright: ignore[reportArgumentType]
            bounds,
            loss="huber",
            f_scale=outlier,
            args=(x, y),
        )
        for floor, alpha, beta in itertools.product(_FLOORS, _EXPONENTS, _EXPONENTS)
    ]
    e, a, alpha, b, beta = min(found, key=lambda each: each.cost).x.tolist()
    return Law(
        floor=exp(e),
        of_parameters=exp(a + alpha * middle[0]),
        alpha=alpha,
        of_tokens=exp(b + beta * middle[1]),
        beta=beta,
    )


def write(path: str | Path, points: Iterable[Point]) -> None:
    """Write points as a table (CSV)."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        table.writeheader()
        table.writerows({**asdict(p), "loss": round(p.loss, 5)} for p in points)


def read(path: str | Path) -> list[Point]:
    """Return the points of a table that `write` has written."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [
            Point(
                run=row["run"],
                parameters=int(row["parameters"]),
                tokens=int(row["tokens"]),
                loss=float(row["loss"]),
            )
            for row in csv.DictReader(file)
        ]


def _terms(theta: Numbers, x: Numbers) -> Numbers:
    """Return the logarithms of the law's three terms, (3, P), at x (2, P)."""
    e, a, alpha, b, beta = theta
    return np.stack([np.full_like(x[0], e), a - alpha * x[0], b - beta * x[1]])


def _error(theta: Numbers, x: Numbers, y: Numbers) -> Numbers:
    return logsumexp(_terms(theta, x), axis=0) - y


def _slope(theta: Numbers, x: Numbers, y: Numbers) -> Numbers:
    share = softmax(_terms(theta, x), axis=0)
    columns = [share[0], share[1], -share[1] * x[0], share[2], -share[2] * x[1]]
    return np.stack(columns, axis=1)


def _figures(path: Path, name: str) -> tuple[Numbers, Numbers]:
    """Return images seen and a figure of a run's records, (P,) each."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the figures of a run in {path}: {error}") from error
    found = [(line["images"], line[name]) for line in lines if name in line]
    if not found:
        known = sorted({key for line in lines for key in line if "/" in key})
        raise UserError(f"{path} has no {name}; there are: {', '.join(known)}")
    images, values = np.array(found, dtype=np.float64).T
    return images, values
