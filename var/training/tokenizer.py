"""Training a tokenizer: what all kinds share; and those with a codebook, and its health."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.convolutional import Convolutional
from var.tokenizers.losses import Objective
from var.tokenizers.residual import Quantised
from var.training import health
from var.training.task import First


class Reconstructor(nn.Module):
    """A tokenizer and what it is judged by, as one module with one forward pass."""

    def __init__(self, tokenizer: Convolutional, objective: Objective, schedule: Schedule) -> None:
        super().__init__()
        self.tokenizer, self.objective, self.schedule = tokenizer, objective, schedule

    def forward(self, image: Tensor) -> tuple[dict[str, Tensor], Quantised]:
        """Return the losses of a batch (B, 3, H, W) in [0, 1], and how it was quantised."""
        reconstruction, quantised = self.tokenizer(image, self.schedule)
        last = self.tokenizer.decoder.conv_out.weight
        losses = self.objective(image, reconstruction.float(), last)
        return losses | {"quantizer": quantised.loss}, quantised


class AutoencoderTask:
    """What tasks that train a tokenizer share.

    Args:
        module: what is trained; the tokenizer is its `tokenizer`.
        tokenizer: to be trained.
        schedule: the ladder of scales.
        sample: images (B, 3, H, W) in [0, 1] to be shown beside their reconstructions.
    """

    def __init__(
        self, module: nn.Module, tokenizer: Any, schedule: Schedule, sample: Tensor
    ) -> None:
        self.module, self.tokenizer = module, tokenizer
        self.schedule, self.sample = schedule, sample

    def to(self, device: torch.device) -> None:
        """Move tokenizer and objective to a device."""
        self.module.to(device)

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


class TokenizerTask(AutoencoderTask):
    """Train a tokenizer with a codebook.

    Args:
        tokenizer: to be trained.
        objective: terms that compare images with reconstructions.
        schedule, sample: see `AutoencoderTask`.
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
    ) -> None:
        super().__init__(Reconstructor(tokenizer, objective, schedule), tokenizer, schedule, sample)
        self.initialise = initialise
        self.health = health.Health(tokenizer.quantizer, revive)
        self.vectors: list[Tensor] = []  # looked up in the last batch
        self.revived = 0

    def to(self, device: torch.device) -> None:
        """Move tokenizer, objective and counts to a device."""
        super().to(device)
        self.health.to(device)

    def start(self, first: First, rng: torch.Generator) -> None:
        """Put the codebook on the latents of a batch."""
        if self.initialise:
            with torch.no_grad():
                latent = self.tokenizer.features(first()[0]).float()
            health.start(self.tokenizer.quantizer, latent, self.schedule, rng)

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return the losses of all terms and their sum, `total`."""
        losses, quantised = module(image)
        self.vectors = quantised.vectors
        counts = health.count_codes(quantised.tokens, len(self.tokenizer.quantizer.codebook.weight))
        self.health.observe(reduce(counts, reduction="sum"))
        return losses | {"total": torch.stack(list(losses.values())).sum()}

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Follow the scales' statistics; revive unused codes every so often."""
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
        """Return the code counts."""
        return {"health": self.health.state_dict(), "revived": self.revived}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the code counts."""
        self.health.load_state_dict(state["health"])
        self.revived = state["revived"]
