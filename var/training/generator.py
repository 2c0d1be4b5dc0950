"""Training a generator on a frozen tokenizer by teacher forcing (VAR, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from var.condition import Condition
from var.errors import UserError
from var.models.base import Backbone
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.tokenizer import Tokenizer
from var.training.loss import loss


class FrozenTokenizer(Tokenizer, Protocol):
    """A tokenizer that can be moved, as all modules can."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""
        ...


class TeacherForcing(nn.Module):
    """A backbone whose forward pass is the training loss."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self,
        tokenizer: Tokenizer,
        schedule: Schedule,
        image: Tensor,
        condition: Condition,
        rng: Rng,
        groups: int | None = None,
    ) -> Tensor:
        """Return the loss of each token of the first `groups` groups (None: all), (B, L)."""
        backbone: Backbone = self.backbone  # pyright: ignore[reportAssignmentType]
        return loss(backbone, tokenizer, schedule, image, condition, rng, groups)


class GeneratorTask:
    """Train a generator.

    Args:
        backbone: to be trained.
        tokenizer: frozen, not part of the checkpoints.
        schedule: the groups.
        sampler: what `preview` shows of a backbone: images (B, 3, H, W) in [0, 1].
        drop_label: share of images that are trained without their label, for guidance.
        groups: train on the first so many groups only (CoDe's drafter, section 5); None: on all.

    Raises:
        UserError: there are not so many groups.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        tokenizer: FrozenTokenizer,
        schedule: Schedule,
        sampler: Callable[[nn.Module], Tensor],
        drop_label: float = 0.1,
        groups: int | None = None,
    ) -> None:
        if groups is not None and not 1 <= groups <= len(schedule):
            raise UserError(f"groups={groups}: an image has 1..{len(schedule)} to train on")
        self.module: nn.Module = TeacherForcing(backbone)
        self.tokenizer, self.schedule = tokenizer, schedule
        self.sampler, self.drop_label = sampler, drop_label
        self.span = schedule[:groups]

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The backbone's repeated blocks."""
        backbone: Any = self.module.backbone
        return backbone.blocks

    def to(self, device: torch.device) -> None:
        """Move backbone and tokenizer to a device."""
        self.module.to(device)
        self.tokenizer.to(device)

    def start(self, image: Tensor, rng: torch.Generator) -> None:
        """Do nothing: a backbone starts from its own initialisation."""

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return the mean loss over all tokens, `total`, and over those of the last group."""
        condition = Condition(label).dropped(rng.uniform(), self.drop_label)
        each = module(self.tokenizer, self.schedule, image, condition, rng, self.span.stop)
        tail = each.detach()[:, -self.span.sizes[-1] :].mean()
        return {"total": each.mean(), "last_group": tail}

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Do nothing."""

    def report(self) -> dict[str, float]:
        """Return nothing: the losses say it all."""
        return {}

    def preview(self, module: nn.Module) -> Tensor:
        """Return samples of the backbone."""
        backbone: Any = module.backbone
        return self.sampler(backbone)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""
