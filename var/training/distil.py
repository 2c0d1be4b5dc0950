"""Distillation: a generator learns to predict what another one predicts (CoDe, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.condition import Condition
from var.errors import UserError
from var.heads.categorical import CategoricalPrediction
from var.models.base import Backbone
from var.random import Rng
from var.sampling import Guide
from var.schedule import Schedule, Span
from var.tokenizers.tokenizer import Tokenizer
from var.training.generator import FrozenTokenizer, GeneratorTask
from var.training.loss import lesson


def distance(
    student: Tensor,
    teacher: Tensor,
    tokens: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """Return how far a student is from its teacher at each position, (...,).

    It is `alpha T^2 KL(teacher || student) + (1 - alpha) CE(tokens)`, where only the KL is taken at
    temperature T. The mean over positions is the published loss.

    Args:
        student: logits (..., V).
        teacher: logits (..., V).
        tokens: ids (...,) that are right; not needed where `alpha` is 1.
        temperature: T, softens both sides.
        alpha: share of the teacher, 0..1.
    """
    ours, theirs = ((each / temperature).log_softmax(dim=-1) for each in (student, teacher))
    taught = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
    taught = taught * temperature**2
    if alpha == 1:
        return taught
    if tokens is None:
        raise ValueError(f"alpha={alpha} asks for the right tokens too")
    right = F.cross_entropy(student.flatten(0, -2), tokens.flatten(), reduction="none")
    return alpha * taught + (1 - alpha) * right.view(taught.shape)


def fading(span: Span, switch: int, weight: float, device: torch.device | str) -> Tensor:
    """Return the weight of each position, (L,): `weight` in groups before `switch`, else 1."""
    return torch.where(span.levels(device) < switch, weight, 1.0)


class Distillation(nn.Module):
    """A backbone whose forward pass is its distance from a teacher.

    Args:
        backbone: the student.
        temperature, alpha: see `distance`.
    """

    def __init__(self, backbone: nn.Module, *, temperature: float, alpha: float) -> None:
        super().__init__()
        self.backbone, self.temperature, self.alpha = backbone, temperature, alpha

    def forward(
        self,
        teacher: nn.Module,
        tokenizer: Tokenizer,
        schedule: Schedule,
        image: Tensor,
        condition: Condition,
        rng: Rng,
        groups: int | None = None,
    ) -> Tensor:
        """Return the distance at each token of the first `groups` groups (None: all), (B, L)."""
        span, x, tokens = lesson(tokenizer, schedule, image, rng, groups)
        with torch.no_grad():
            theirs = logits(teacher, x, span, condition)
        ours = logits(self.backbone, x, span, condition)
        return distance(ours, theirs, tokens, temperature=self.temperature, alpha=self.alpha)


class DistilTask(GeneratorTask):
    """Train a generator to predict as a teacher does.

    Given a switch, what the student learns about the groups before it weighs less and less, down to
    0 at the last step: it ends as a specialist for the others (CoDe's refiner).

    Args:
        backbone: to be trained.
        teacher: a trained backbone of the same tokens, frozen, not part of the checkpoints.
        tokenizer, schedule, sampler, drop_label, groups: see `GeneratorTask`.
        steps: of the run, for the weight that falls.
        switch: number of groups that fade, less than there are; None: all weigh the same.
        start: what they weigh at the first step; 0: only the other groups are learned.
        temperature, alpha: see `distance`.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        teacher: nn.Module,
        tokenizer: FrozenTokenizer,
        schedule: Schedule,
        sampler: Callable[[nn.Module], Tensor],
        steps: int,
        switch: int | None = None,
        start: float = 1.0,
        drop_label: float = 0.1,
        groups: int | None = None,
        temperature: float = 1.0,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(
            backbone=backbone,
            tokenizer=tokenizer,
            schedule=schedule,
            sampler=sampler,
            drop_label=drop_label,
            groups=groups,
        )
        if switch is not None and not 1 <= switch < self.span.stop:
            raise UserError(f"teacher.switch={switch}: use 1..{self.span.stop - 1}, or null")
        if not (temperature > 0 and 0 <= alpha <= 1):
            raise UserError(
                f"teacher.temperature={temperature}, teacher.alpha={alpha}: the temperature must "
                "be positive, alpha lie in 0..1"
            )
        self.module = Distillation(backbone, temperature=temperature, alpha=alpha)
        self.teacher = teacher.eval().requires_grad_(False)
        self.steps, self.switch, self.start_weight, self.step = steps, switch or 0, start, 0

    @property
    def weight(self) -> float:
        """What a group before the switch weighs at the coming step."""
        return self.start_weight * max(0.0, 1 - self.step / max(1, self.steps - 1))

    def to(self, device: torch.device) -> None:
        """Move student, teacher and tokenizer to a device."""
        super().to(device)
        self.teacher.to(device)

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return the mean distance: weighted, `total`; plain; of the last group's tokens."""
        condition = Condition(label).dropped(rng.uniform(), self.drop_label)
        each = module(
            self.teacher, self.tokenizer, self.schedule, image, condition, rng, self.span.stop
        )
        weights = fading(self.span, self.switch, self.weight, each.device)
        plain, last = each.detach(), self.span.sizes[-1]
        return {
            "total": (each * weights).mean(),
            "unweighted": plain.mean(),
            "last_group": plain[:, -last:].mean(),
        }

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Note how far the run is."""
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """Return how far the run is."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.step = state["step"]


def logits(model: nn.Module, x: Tensor, span: Span, condition: Condition) -> Tensor:
    """Return what a backbone predicts of each token of a span, (B, L, V).

    Args:
        model: the backbone.
        x: (B, L, C) what a canvas shows.
        span: the groups, from the first one on.
        condition: what the images show.

    Raises:
        UserError: it predicts no codes.
    """
    backbone = cast(Backbone, model)
    h = backbone(x, span, condition)
    prediction = backbone.head(h, span, Guide(scale=1, rows=1))
    if not isinstance(prediction, CategoricalPrediction):
        raise UserError("distillation compares distributions over codes: this model has none")
    return prediction.logits
