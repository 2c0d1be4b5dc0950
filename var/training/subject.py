"""Subject-driven fine-tuning: a few images of one thing, without forgetting its kind (ARBooth).

Beside the images a generator learns from itself: from what it predicted, before it was changed, of
images of the thing's class, which are drawn anew at every step and never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from var.condition import Condition
from var.errors import UserError
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.tokenizer import Canvas, Tokenizer
from var.training.distil import distance, logits
from var.training.generator import GeneratorTask
from var.training.loss import loss

# Returns what a backbone decides of images that show what is asked for, one stream per image.
Draw = Callable[[nn.Module, Condition, Rng], Canvas]


class Subject(nn.Module):
    """A backbone whose forward pass is its loss on images, and its distance from a teacher.

    Args:
        backbone: the student.
        hard: the distance is the cross-entropy of the teacher's likeliest code instead of the KL.
    """

    def __init__(self, backbone: nn.Module, *, hard: bool) -> None:
        super().__init__()
        self.backbone, self.hard = backbone, hard

    def forward(
        self,
        teacher: nn.Module,
        tokenizer: Tokenizer,
        schedule: Schedule,
        image: Tensor,
        condition: Condition,
        drawn: Canvas,
        prior: Condition,
        rng: Rng,
        groups: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss on images, and the distance on what was drawn, at each token, (B, L)."""
        backbone: Any = self.backbone
        own = loss(backbone, tokenizer, schedule, image, condition, rng, groups)
        span = schedule[:groups]
        with torch.no_grad():
            x = drawn.read(span)
            theirs = logits(teacher, x, span, prior)
        ours = logits(backbone, x, span, prior)
        return own, distance(ours, theirs, theirs.argmax(dim=-1), alpha=1.0 - self.hard)


class SubjectTask(GeneratorTask):
    """Train a generator on images of a subject, and on what a teacher knows of the subject's class.

    Args:
        teacher: the backbone as it was, frozen, not part of the checkpoints.
        draw: how the teacher makes images.
        prior: id of the class that is not to be forgotten, the same to both.
        weight: of the distance from the teacher.
        first: number of groups whose tokens weigh 1 in the loss on images; None: all of them.
        rest: what those of the others weigh.
        hard: see `Subject`.
        settings: see `GeneratorTask`.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module,
        draw: Draw,
        prior: int,
        weight: float = 0.5,
        first: int | None = None,
        rest: float = 0.5,
        hard: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if first is not None and not 1 <= first <= self.span.stop:
            raise UserError(f"subject.first={first}: use 1..{self.span.stop}, or null")
        if weight < 0 or rest < 0:
            raise UserError(f"subject.weight={weight}, subject.rest={rest}: use 0 or more")
        self.module = Subject(settings["backbone"], hard=hard)
        self.teacher, self.draw, self.prior = teacher.eval().requires_grad_(False), draw, prior
        self.weight, self.first, self.rest = weight, first or self.span.stop, rest

    def to(self, device: torch.device) -> None:
        """Move student, teacher and tokenizer to a device."""
        super().to(device)
        self.teacher.to(device)

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return the mean loss on the images, `subject`, the distance, `prior`, and their sum.

        In the sum, `total`, they weigh what they shall.
        """
        condition = Condition(label).dropped(rng.uniform(), self.drop_label)
        prior = Condition(torch.full_like(label, self.prior))
        drawn = self.draw(self.teacher, prior, rng)
        places = (self.teacher, self.tokenizer, self.schedule)
        own, kept = module(*places, image, condition, drawn, prior, rng, self.span.stop)
        early = self.span.levels(own.device) < self.first
        weighted = (own * torch.where(early, 1.0, self.rest)).mean()
        return {
            "total": weighted + self.weight * kept.mean(),
            "subject": own.detach().mean(),
            "prior": kept.detach().mean(),
        }
