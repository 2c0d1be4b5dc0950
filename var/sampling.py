"""How to sample: filter settings and classifier-free guidance.

Frozen values on the ground floor; heads and decodings read them, nobody changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real
from typing import Any, TypedDict

import torch
from torch import Tensor

from var.errors import UserError
from var.schedule import Span


@dataclass(frozen=True)
class Guide:
    """Classifier-free guidance at one step: `null + scale * (given - null)`.

    Attributes:
        scale: guidance scale of this step, or L of them, one for each position, where they differ;
            1 leaves the conditional prediction as it is.
        rows: model rows per image, 2 with a null half (rows B.. of a batch of 2B), 1 without.
        progress: how far the image is, 0 at the first group and 1 at the last.
    """

    scale: float | tuple[float, ...]
    rows: int
    progress: float = 0.0

    def spread(self, x: Tensor) -> Tensor:
        """Repeat a batch for the null half: (B, ...) -> (R, ...)."""
        return x if self.rows == 1 else torch.cat([x] * self.rows)

    def __call__(self, y: Tensor) -> Tensor:
        """Combine the halves of a prediction: (R, ...) -> (B, ...)."""
        if self.rows == 1:
            return y
        given, null = y.chunk(2)
        if isinstance(self.scale, tuple):  # not where they are 1: sums of infinities are none
            scale = _column(self.scale, y.device)
            return torch.where(scale == 1, given, null + scale * (given - null))
        return given if self.scale == 1 else null + self.scale * (given - null)

    def of(self, predict: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """Return the guided `predict(h)` of features (R, ...), (B, ...).

        Predicts nothing from a null half that weighs nothing.
        """
        return predict(h.chunk(self.rows)[0]) if self.scale == 1 else self(predict(h))


# Copied without the host waiting: it is wanted in the middle of a step.
@lru_cache(maxsize=64)
def _column(scales: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(scales).to(device, non_blocking=True)[:, None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from predictions.

    Temperature, top-k, top-p and steps are one number, or one for each group. Heads heed those
    settings that mean something to them (`Head.heeds`).

    Attributes:
        guidance: guidance scale at the first and at the last group, linear in between. A single
            number g stands for (1, 1 + g): VAR's published `cfg`, which grows from none to 1 + g.
        temperature: divides the logits, and multiplies the noise that a flow starts from; 1 leaves
            them as they are. Positive.
        top_k: keep the k most likely codes (and ties with the last of them); 0 keeps all.
        top_p: keep the most likely codes until their mass exceeds p; 0 keeps all.
        temper_last: apply the temperature after the filters, so that it does not change what they
            keep (CoDe, section 4), instead of before.
        smooth: mix code vectors with Gumbel-softmax weights instead of picking one (VAR's
            `more_smooth`): for looks, not for measured quality.
        steps: of the solver that follows a flow; evaluations of it, for solvers of first order.
        solver: how a flow is followed, see `var.heads.ode`.
        interval: first and last time at which a flow is guided, 0 (data) to 1 (noise). A single
            number t stands for (0, t): FlowAR's published `guidance`.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    guidance: float | tuple[float, float] = 0.0
    guided_groups: int | None = None
    temperature: float | tuple[float, ...] = 1.0
    top_k: int | tuple[int, ...] = 0
    top_p: float | tuple[float, ...] = 0.0
    temper_last: bool = False
    smooth: bool = False
    steps: int | tuple[int, ...] = 25
    solver: str = "euler"
    interval: float | tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_numbers(self)
        if isinstance(self.guidance, int | float):
            object.__setattr__(self, "guidance", (1.0, 1.0 + self.guidance))
        else:
            object.__setattr__(self, "guidance", tuple(float(g) for g in self.guidance))
        if len(self.scales) != 2 or not all(math.isfinite(g) for g in self.scales):
            raise ValueError(
                f"guidance must be a finite number or two of them, got {self.guidance}"
            )
        groups = self.guided_groups
        if groups is not None and (type(groups) is not int or groups < 0):
            raise ValueError(f"guided_groups must be a whole number or none, got {groups}")
        for name in _PER_GROUP:
            value = getattr(self, name)
            if isinstance(value, Sequence):
                object.__setattr__(self, name, tuple(value))
                if not value:
                    raise ValueError(f"{name} is an empty list: give one number, or one per group")
        if not all(t > 0 and math.isfinite(t) for t in _each(self.temperature)):
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not all(k >= 0 and math.isfinite(k) and int(k) == k for k in _each(self.top_k)):
            raise ValueError(f"top_k must be 0 (off) or a positive whole number, got {self.top_k}")
        if not all(0 <= p <= 1 for p in _each(self.top_p)):
            raise ValueError(f"top_p must lie in 0..1 (0: off), got {self.top_p}")
        self._check_flow()

    def _check_flow(self) -> None:
        if not all(type(n) is int and n >= 1 for n in _each(self.steps)):
            raise ValueError(f"steps must be whole numbers of at least 1, got {self.steps}")
        if not isinstance(self.solver, str):
            raise ValueError(f"solver must be a name, got {self.solver}")
        until = self.interval
        both = (0.0, until) if isinstance(until, int | float) else tuple(until or ())
        object.__setattr__(self, "interval", both)
        if len(both) != 2 or not 0 <= both[0] <= both[1] <= 1:
            raise ValueError(f"interval must be a time in 0..1, or a first and a last, got {until}")

    @property
    def scales(self) -> tuple[float, float]:
        """Guidance scale at the first and at the last group."""
        assert isinstance(self.guidance, tuple)
        return self.guidance

    def heeded(self, heeds: Collection[str]) -> dict[str, Any]:
        """Return those settings that a head heeds, by name, but none that is None."""
        return {k: v for k, v in vars(self).items() if k in heeds and v is not None}

    def check(self, groups: int) -> None:
        """Check that what is given group by group is given for so many groups.

        Raises:
            ValueError: it is not; the message names it.
        """
        for name, value in self._lists().items():
            if len(value) != groups:
                raise ValueError(
                    f"{name} is given for {len(value)} groups, the schedule has {groups}: "
                    f"give one number, or {groups}"
                )

    def at(self, group: int) -> Sampling:
        """Return the settings of one group: single numbers throughout."""
        lists = self._lists()
        return replace(self, **{name: v[group] for name, v in lists.items()}) if lists else self

    def over(self, span: Span) -> Sampling:
        """Return the settings of the groups of a span, which must be those of its first one.

        Raises:
            UserError: they differ.
        """
        first = self.at(span.start)
        lists = self._lists()
        for name, values in lists.items():
            if len(set(values[span.start : span.stop])) > 1:
                raise UserError(
                    f"{name}={list(values)} differs among groups {span.start}..{span.stop - 1}, "
                    "which this decoding decides at once: give one number"
                )
        return first

    def _lists(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _PER_GROUP}
        return {name: value for name, value in values.items() if isinstance(value, tuple)}

    def guide(self, progress: float) -> Guide:
        """Return the guidance at `progress`, 0 at the first group and 1 at the last."""
        first, last = self.scales
        return Guide(first + (last - first) * progress, self.rows, progress)

    @property
    def rows(self) -> int:
        """Model rows per image: 2 with a null half, 1 without."""
        return 1 if set(self.scales) == {1} else 2

    def guide_over(self, span: Span) -> Guide:
        """Return the guidance of the groups of a span, from its first one on."""
        last = max(1, len(span.schedule) - 1)
        until = span.stop if self.guided_groups is None else self.guided_groups
        if span.start >= until:
            return Guide(1.0, 1, span.start / last)
        guides = [self.guide(group / last) for group in range(span.start, span.stop)]
        scales = [each.scale if span.start + k < until else 1.0 for k, each in enumerate(guides)]
        if len(set(scales)) == 1:
            return guides[0]
        sized = zip(scales, span.sizes, strict=True)
        return replace(guides[0], scale=tuple(scale for scale, size in sized for _ in range(size)))


class Settings(TypedDict, total=False):
    """Sampling settings by name, see `Sampling`; None takes what the run recommends."""

    guidance: float | tuple[float, float] | None
    guided_groups: int | None
    temperature: float | Sequence[float] | None
    top_k: int | Sequence[int] | None
    top_p: float | Sequence[float] | None
    temper_last: bool | None
    smooth: bool | None
    steps: int | Sequence[int] | None
    solver: str | None
    interval: float | tuple[float, float] | None


_PER_GROUP = ("temperature", "top_k", "top_p", "steps")


def _check_numbers(sampling: Sampling) -> None:
    for name in ("guidance", "interval", *_PER_GROUP):
        value = getattr(sampling, name)
        listed = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if odd := [each for each in listed if not isinstance(each, Real)]:
            raise ValueError(f"{name} must be a number, or a list of them, got {odd[0]!r}")


def _each(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
