"""Training a tokenizer: what all kinds share; and those with a codebook, and its health."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn

from var.errors import UserError
from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.convolutional import Convolutional
from var.tokenizers.losses import Objective
from var.tokenizers.residual import Quantised
from var.training import health

# Images that are looked at together before training begins: memory is for what comes then.
PIECE = 32


class Reconstructor(nn.Module):
    """A tokenizer and what it is judged by, as one module with one forward pass."""

    def __init__(self, tokenizer: Convolutional, objective: Objective) -> None:
        super().__init__()
        self.tokenizer, self.objective = tokenizer, objective

    def forward(self, image: Tensor, schedule: Schedule) -> tuple[dict[str, Tensor], Quantised]:
        """Return the losses of a batch (B, 3, H, W) in [0, 1], and how it was quantised."""
        reconstruction, quantised = self.tokenizer(image, schedule)
        last = self.tokenizer.decoder.conv_out.weight
        losses = self.objective(image, reconstruction.float(), last)
        return losses | {"quantizer": quantised.loss}, quantised


class AutoencoderTask:
    """What tasks that train a tokenizer share.

    Args:
        module: what is trained; the tokenizer is its `tokenizer`, an `objective` judges it.
        tokenizer: to be trained.
        schedule: the ladder of scales.
        sample: images (B, 3, H, W) in [0, 1] to be shown beside their reconstructions.
        ladders: schedules that are trained on, too, on images made smaller; see `drawn`.
        train: the part that is trained, as the tokenizer names it, while the others stay as they
            are; or `all`.

    Raises:
        UserError: a ladder does not go with the schedule, or there is no such part.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        schedule: Schedule,
        sample: Tensor,
        *,
        ladders: Sequence[Schedule] = (),
        train: str = "all",
    ) -> None:
        self.module, self.tokenizer = module, tokenizer
        self.schedule, self.sample = schedule, sample
        for ladder in ladders:
            check_ladder(ladder, schedule, bound=not tokenizer.any_schedule)
        self.ladders, self.step = (schedule, *ladders), 0
        freeze(module, train)

    def drawn(self, image: Tensor) -> tuple[Tensor, Schedule]:
        """Return the ladder of a step, drawn by its number, and images (B, 3, H, W) at its size.

        The first step is on the schedule itself: none needs more memory.
        """
        schedule = random.Random(self.step).choice(self.ladders) if self.step else self.schedule
        side = image.shape[-1] * schedule.grids[-1][0] // self.schedule.grids[-1][0]
        if side != image.shape[-1]:
            image = F.interpolate(image, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return image, schedule

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """None: a tokenizer fits, and is remembered, as a whole."""
        return ()

    def to(self, device: torch.device) -> None:
        """Move tokenizer and objective to a device."""
        self.module.to(device)

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Count the steps, and tell the objective."""
        self.step = step
        self.module.objective.stepped(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it, and tell the objective."""
        self.step = state["step"]
        self.module.objective.stepped(self.step)

    @torch.no_grad()
    def preview(self, module: nn.Module) -> Tensor:
        """Return the sample images, each above its reconstruction after every scale.

        Of many groups those after one in eight of them are shown.
        """
        tokenizer: Any = module.tokenizer
        image = self.sample.to(next(module.parameters()).device)
        canvas, rows = tokenizer.blank(len(image), self.schedule), [image]
        stride = 1 if len(self.schedule) < 16 else len(self.schedule) // 8
        for tokens in tokenizer.encode(image, self.schedule):
            canvas = canvas.write(tokens)
            if (len(self.schedule) - canvas.done) % stride == 0:
                rows.append(tokenizer.decode(canvas))
        return torch.cat(rows)


def check_ladder(ladder: Schedule, schedule: Schedule, *, bound: bool) -> None:
    """Check that one tokenizer can be trained on a ladder and on the schedule in turn.

    Args:
        ladder: the other ladder.
        schedule: that of the data's own size.
        bound: parts of the tokenizer belong to scales.

    Raises:
        UserError: it has another number of scales, or is for larger images, or oblong ones.
    """
    scales, wanted = (0 if each.is_raster else len(each) for each in (ladder, schedule))
    if bound and scales != wanted:
        raise UserError(
            f"task.ladders: {ladder} are not as many scales as those of schedule, {schedule}: "
            "what belongs to a scale is shared by all ladders, so give them the same length"
        )
    (height, width), most = ladder.grids[-1], schedule.grids[-1][0]
    if height != width or height > most:
        raise UserError(
            f"task.ladders: {ladder} end on {height} x {width}: use a square of at most "
            f"{most} x {most}, the grid of the data's images"
        )


def freeze(module: Any, train: str) -> None:
    """Leave nothing of a module's tokenizer to be trained but one part, or `all` of it.

    Raises:
        UserError: there is no such part, or the objective compares gradients in another one.
    """
    if train == "all":
        return
    parts = module.tokenizer.parts
    if train not in parts:
        raise UserError(f"task.train={train}: use all, {', '.join(parts)}")
    for name, term in module.objective.terms.items():
        if train != "decoder" and getattr(term, "relative", False):
            raise UserError(
                f"objective.{name} weighs itself at the decoder, which task.train={train} leaves "
                f"alone: say objective.{name}.adaptive=false"
            )
    module.tokenizer.requires_grad_(False)
    for part in parts[train]:
        part.requires_grad_(True)


class TokenizerTask(AutoencoderTask):
    """Train a tokenizer with a codebook.

    Args:
        tokenizer: to be trained.
        objective: terms that compare images with reconstructions.
        schedule, sample, common: see `AutoencoderTask`.
        initialise: put the codebook on the first batch instead of near zero.
        revive: steps between revivals of unused codes; 0: never.
    """

    def __init__(
        self,
        *,
        tokenizer: Convolutional,
        objective: Objective,
        schedule: Schedule,
        sample: Tensor,
        initialise: bool = True,
        revive: int = 50,
        **common: Any,
    ) -> None:
        module = Reconstructor(tokenizer, objective)
        super().__init__(module, tokenizer, schedule, sample, **common)
        self.initialise = initialise
        self.health = health.Health(tokenizer.quantizer, revive)
        self.vectors: list[Tensor] = []  # looked up in the last batch
        self.revived = 0

    def to(self, device: torch.device) -> None:
        """Move tokenizer, objective and counts to a device."""
        super().to(device)
        self.health.to(device)

    def start(self, image: Tensor, rng: torch.Generator) -> None:
        """Put the codebook on the latents of images."""
        if self.initialise:
            with torch.no_grad():
                latents = [self.tokenizer.features(part).float() for part in image.split(PIECE)]
            latent = torch.cat(latents)
            health.start(self.tokenizer.quantizer, latent, self.schedule, rng)

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return the losses of all terms and their sum, `total`."""
        losses, quantised = module(*self.drawn(image))
        self.vectors = quantised.vectors
        counts = health.count_codes(quantised.tokens, len(self.tokenizer.quantizer.codebook.weight))
        self.health.observe(reduce(counts, reduction="sum"))
        return losses | {"total": torch.stack(list(losses.values())).sum()}

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Follow the scales' statistics; revive unused codes every so often."""
        super().stepped(step, optimizer, rng)
        if not self.tokenizer.quantizer.codebook.weight.requires_grad:
            return
        standard = self.tokenizer.quantizer.standard
        if standard is not None:
            mean, square = reduce(list(health.moments(self.vectors)), reduction="mean")
            standard.follow(mean, health.covariance(mean, square), share=0.05)
        if self.health.interval and step % self.health.interval == 0:
            vectors = broadcast([v.contiguous() for v in self.vectors])
            self.revived += self.health.revive(vectors, optimizer, rng)

    def report(self) -> dict[str, float]:
        """Return usage and perplexity of each scale, and the number of codes revived."""
        figures = {name: float(value) for name, value in self.health.report().items()}
        figures["codes/revived"], self.revived = float(self.revived), 0
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return steps and code counts."""
        counts = {"health": self.health.state_dict(), "revived": self.revived}
        return super().state_dict() | counts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore steps and code counts."""
        super().load_state_dict(state)
        self.health.load_state_dict(state["health"])
        self.revived = state["revived"]
