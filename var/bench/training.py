"""Training steps side by side: what each row takes of time and memory, and whether it agrees.

A step is forward pass, backward pass and AdamW, of one micro-batch. All rows begin with the same
weights and are shown the same random tokens; encoding images is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from var import hub, recipe
from var.bench.figures import Figures
from var.bench.memory import Peak
from var.bench.naive_train import NaiveTraining
from var.bench.stopwatch import finisher
from var.condition import Condition
from var.devices import is_out_of_memory, parse_precision, precision_name
from var.errors import UserError
from var.heads.categorical import Categorical
from var.models.base import Backbone
from var.models.var import VAR
from var.nn.recompute import recompute
from var.random import Rng
from var.store import Run
from var.training.loss import Lesson


@dataclass
class Step:
    """A row: a way to take a training step, and what was measured of it.

    Attributes:
        label: what it is called.
        batch: number of images.
        model: makes what is trained; called once for each measurement of memory.
        loss: of each position, of such a model.
        dtype: what products are computed in.
        first: the row of the same model, precision and batch that it is compared with.
        totals: seconds of each round.
        losses: of each round.
        peak: most bytes in use in the first two steps, beyond the weights.
        fault: why the row was given up; empty if it was not.
    """

    label: str
    batch: int
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]
    dtype: torch.dtype
    first: Step | None = None
    totals: list[float] = field(default_factory=list[float])
    losses: list[float] = field(default_factory=list[float])
    peak: int = 0
    fault: str = ""

    def start(self) -> None:
        """Begin anew, with the first weights and an optimiser that knows nothing."""
        self.module = self.model()
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True)
        self.device = next(self.module.parameters()).device

    def take(self) -> float:
        """Take a step; return the loss before it."""
        torch.manual_seed(0)
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            loss = self.loss(self.module).mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())

    def figures(self) -> Figures:
        """Return the row of the table; times in ms, memory in MB, shares are row / first row."""
        known: dict[str, str | float | None] = {"row": self.label, "batch": self.batch}
        if self.fault or not self.totals:
            return {**known, "note": self.fault or "not measured"}
        first = self.first or self
        pairs = zip(self.totals, first.totals, strict=False)
        shares = [own / other for own, other in pairs]
        gaps = [abs(a - b) for a, b in zip(self.losses, first.losses, strict=False)]
        return {
            **known,
            "ms": 1e3 * median(self.totals),
            "min": 1e3 * min(self.totals),
            "max": 1e3 * max(self.totals),
            "images/s": self.batch / median(self.totals),
            "time share": median(shares) if shares else None,
            "peak MB": self.peak / 1e6,
            "memory share": self.peak / first.peak if first.peak else None,
            "loss": self.losses[0],
            "loss difference": max(gaps) if gaps else None,
        }


def make_steps(values: Mapping[str, Any], device: torch.device) -> list[Step]:
    """Return the rows of a bench of training.

    Args:
        values: lists `model`, `precision`, `compile` and `batch`, and `naive`, `seed` and `files`.
        device: where the work is done.

    Raises:
        UserError: a row cannot be made.
    """
    steps: list[Step] = []
    for name, precision, batch in product(values["model"], values["precision"], values["batch"]):
        if not isinstance(batch, int) or batch < 1:
            raise UserError(f"batch={batch}: use whole numbers from 1 on")
        run = hub.find(str(name), device=device, files=values["files"])
        if run.model is None:
            raise UserError(f"model={name} is a tokenizer: there is no training step to measure")
        dtype = parse_precision(str(precision), device)
        facts = lesson_of(run, batch, values["seed"], device)
        label = f"{name} {{}} {precision_name(dtype)}"
        rows = list(_rows(run, facts, batch, label, dtype, device, values))
        for row in rows[1:]:
            row.first = rows[0]
        steps += rows
    return steps


def _rows(
    run: Run,
    facts: Lesson,
    batch: int,
    label: str,
    dtype: torch.dtype,
    device: torch.device,
    values: Mapping[str, Any],
) -> Iterator[Step]:
    condition = Condition(torch.arange(batch, device=device) % 2)

    def own(module: Any) -> Tensor:
        h = module(facts.x, facts.span, condition)
        return module.head.loss(h, facts.tokens, facts.span, Rng.batch(0, batch, device))

    def new(naive: bool = False, recomputed: bool = False, compiled: bool = False) -> nn.Module:
        spec = cast(recipe.Spec, run.recipe.backbone)
        model: Any = recipe.build(spec, "bench", device="cpu").to(device).train()
        model.load_state_dict(cast(nn.Module, run.model).state_dict())
        if recomputed:
            recompute(model.blocks)
        if compiled:
            model.compile()
        return NaiveTraining(model) if naive else model

    if values["naive"]:
        if not isinstance(run.model, VAR):
            raise UserError("the naive training step is written for VAR only: say naive=false")
        yield Step(
            label.format("naive"),
            batch,
            lambda: new(naive=True),
            lambda module: module(facts.x, facts.span, condition, facts.tokens),
            dtype,
        )
    for compiled, recomputed in product(values["compile"], (False, True)):
        words = ["checkpointing" if recomputed else "plain", *(["compiled"] if compiled else [])]
        make = partial(new, recomputed=recomputed, compiled=compiled)
        yield Step(label.format(" ".join(words)), batch, make, own, dtype)


def lesson_of(run: Run, batch: int, seed: int, device: torch.device) -> Lesson:
    """Return what a run's generator is taught about images of random tokens."""
    schedule, rng = run.recipe.schedule, torch.Generator().manual_seed(seed)
    head, tokenizer = cast(Backbone, run.model).head, cast(Any, run.tokenizer)
    tokens: list[Tensor] = []
    for size in schedule.sizes:
        if isinstance(head, Categorical):
            drawn = torch.randint(head.vocabulary, (batch, size), generator=rng)
        else:
            drawn = torch.randn(batch, size, cast(Any, head).net.channels, generator=rng)
        tokens.append(drawn.to(device))
    with torch.no_grad():
        x = tokenizer.blank(batch, schedule).write(*tokens).read(schedule[:])
    return Lesson(schedule[:], x, torch.cat(tokens, dim=1))


def measure_steps(
    steps: Sequence[Step],
    device: torch.device,
    *,
    warmup: int,
    repeats: int,
    told: Callable[[str], None] = lambda label: None,
    clock: Callable[[], float] = perf_counter,
) -> None:
    """Measure rows: memory one by one, then time in rounds in which each has its turn.

    Args:
        steps: the rows, which keep what is found.
        device: where the work is done.
        warmup: steps of each row before the rounds, after two for memory.
        repeats: rounds.
        told: called with the label of a row before each of its steps.
        clock: seconds since whenever.
    """
    finish = finisher(device)
    for step in steps:
        told(step.label)
        _attempt(_gauge, step)
    for number in range(warmup + repeats):
        for step in steps:
            told(step.label)
            finish()
            start = clock()
            loss = _attempt(Step.take, step)
            finish()
            if number >= warmup and not step.fault:
                step.totals.append(clock() - start)
                step.losses.append(cast(float, loss))


def _gauge(step: Step) -> None:
    step.start()
    with Peak(step.device) as peak:
        step.take()
        step.take()
    step.peak = peak.bytes
    step.start()  # what was allocated in between is not to help the others


def _attempt(work: Callable[[Step], Any], step: Step) -> Any:
    """Return what some work returns; a row that is out of memory is given up."""
    if step.fault:
        return None
    try:
        return work(step)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        step.fault = "out of memory"
        return None
