"""How to sample and on what: filter settings, classifier-free guidance and conditions.

Frozen values on the ground floor; heads and decodings read them, nobody changes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guide:
    """Classifier-free guidance at one step: `null + scale * (given - null)`.

    Attributes:
        scale: guidance scale of this step; 1 leaves the conditional prediction as it is.
        rows: model rows per image, 2 with a null half (rows B.. of a batch of 2B), 1 without.
        progress: how far the image is, 0 at the first group and 1 at the last.
    """

    scale: float
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
        return given if self.scale == 1 else null + self.scale * (given - null)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from predictions.

    Attributes:
        guidance: guidance scale at the first and at the last group, linear in between. A single
            number g stands for (1, 1 + g): VAR's published `cfg`, which grows from none to 1 + g.
        temperature: divides the logits; 1 leaves them as they are. Positive.
        top_k: keep the k most likely codes (and ties with the last of them); 0 keeps all.
        top_p: keep the most likely codes until their mass exceeds p; 0 keeps all.
        smooth: mix code vectors with Gumbel-softmax weights instead of picking one (VAR's
            `more_smooth`): for looks, not for measured quality.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    guidance: float | tuple[float, float] = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    smooth: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.guidance, int | float):
            object.__setattr__(self, "guidance", (1.0, 1.0 + self.guidance))
        else:
            object.__setattr__(self, "guidance", tuple(float(g) for g in self.guidance))
        if len(self.scales) != 2 or not all(math.isfinite(g) for g in self.scales):
            raise ValueError(
                f"guidance must be a finite number or two of them, got {self.guidance}"
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.top_k < 0 or int(self.top_k) != self.top_k:
            raise ValueError(f"top_k must be 0 (off) or a positive whole number, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie in 0..1 (0: off), got {self.top_p}")

    @property
    def scales(self) -> tuple[float, float]:
        """Guidance scale at the first and at the last group."""
        assert isinstance(self.guidance, tuple)
        return self.guidance

    def guide(self, progress: float) -> Guide:
        """Return the guidance at `progress`, 0 at the first group and 1 at the last."""
        first, last = self.scales
        rows = 1 if first == last == 1 else 2
        return Guide(scale=first + (last - first) * progress, rows=rows, progress=progress)


@dataclass(frozen=True)
class Condition:
    """What the images shall show.

    Attributes:
        labels: (B,) int64 class ids; -1 means no condition.
    """

    labels: Tensor

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ValueError(
                f"labels must be whole numbers of shape (B,), got {self.labels.dtype} "
                f"of shape {tuple(self.labels.shape)}"
            )

    def spread(self, rows: int) -> Condition:
        """Return the condition of all model rows: itself, then null rows if there are two."""
        if rows == 1:
            return self
        return Condition(torch.cat([self.labels, torch.full_like(self.labels, -1)]))

    def dropped(self, draw: Tensor, rate: float) -> Condition:
        """Return the condition without the labels where `draw` (B,), uniform, is below `rate`."""
        return replace(self, labels=self.labels.masked_fill(draw < rate, -1))

    def __len__(self) -> int:
        return len(self.labels)
