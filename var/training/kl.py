"""Training a continuous tokenizer: reconstruction, and a posterior that stays near N(0, 1)."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from var.random import Rng
from var.schedule import Schedule
from var.tokenizers.continuous import KL, Posterior
from var.tokenizers.losses import Objective
from var.training.tokenizer import PIECE, AutoencoderTask


class Variational(nn.Module):
    """A continuous tokenizer and what it is judged by, as one module with one forward pass."""

    def __init__(self, tokenizer: KL, objective: Objective, weight: float) -> None:
        super().__init__()
        self.tokenizer, self.objective, self.weight = tokenizer, objective, weight

    def forward(self, image: Tensor, rng: Rng) -> tuple[dict[str, Tensor], Posterior]:
        """Return the losses of a batch (B, 3, H, W) in [0, 1], and what its latents are drawn from.

        The divergence is taken per pixel value, as reconstruction errors are.
        """
        reconstruction, posterior = self.tokenizer(image, rng)
        last = self.tokenizer.vae.decoder.conv_out.weight
        losses = self.objective(image, reconstruction.float(), last)
        divergence = posterior.divergence().mean() / image[0].numel()
        return losses | {"divergence": self.weight * divergence}, posterior


class KLTask(AutoencoderTask):
    """Train a continuous tokenizer, and note where its latents lie.

    Args:
        tokenizer: to be trained.
        objective, schedule, sample, common: see `AutoencoderTask`.
        initialise: take mean and deviation of the latents from the first batch.
        weight: of the divergence from N(0, 1).
        share: of each batch in the running mean and deviation by which latents are standardised.
    """

    def __init__(
        self,
        *,
        tokenizer: KL,
        objective: Objective,
        schedule: Schedule,
        sample: Tensor,
        initialise: bool = True,
        weight: float = 1e-6,
        share: float = 0.02,
        **common: Any,
    ) -> None:
        module = Variational(tokenizer, objective, weight)
        super().__init__(module, tokenizer, schedule, sample, **common)
        self.initialise, self.share = initialise, share
        self.posterior: Posterior | None = None  # of the last batch

    @torch.no_grad()
    def start(self, image: Tensor, rng: torch.Generator) -> None:
        """Take mean and deviation of the latents from the first images."""
        if self.initialise:
            parts = image.split(PIECE)
            codes = torch.cat([self.tokenizer.compress(part, self.schedule) for part in parts])
            self._follow(Posterior.of(codes), share=1.0)

    def losses(
        self, module: nn.Module, image: Tensor, label: Tensor, rng: Rng
    ) -> dict[str, Tensor]:
        """Return the losses of all terms and their sum, `total`."""
        losses, posterior = module(self.drawn(image)[0], rng)
        self.posterior = Posterior(*(moment.detach() for moment in posterior))
        return losses | {"total": torch.stack(list(losses.values())).sum()}

    def stepped(self, step: int, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        """Follow mean and deviation of the latents."""
        super().stepped(step, optimizer, rng)
        if self.tokenizer.vae.encoder.conv_in.weight.requires_grad:
            assert self.posterior is not None
            self._follow(self.posterior, self.share)

    def report(self) -> dict[str, float]:
        """Return the smallest and the largest deviation of a channel."""
        deviation = 1 / self.tokenizer.scale
        return {
            "latent/least_deviation": float(deviation.min()),
            "latent/most_deviation": float(deviation.max()),
        }

    @torch.no_grad()
    def _follow(self, posterior: Posterior, share: float) -> None:
        shift, scale, places = self.tokenizer.shift, self.tokenizer.scale, (0, 2, 3)
        square = posterior.mean.square() + posterior.deviation.square()
        moments = torch.stack([posterior.mean.mean(places), square.mean(places)])
        mean, square = reduce(moments, reduction="mean").view(2, *shift.shape)
        # Mean squares are what can be averaged over batches; deviations follow from them.
        old = scale.reciprocal().square() + shift.square()
        new = torch.lerp(old, square, share)
        shift.lerp_(mean, share)
        scale.copy_((new - shift.square()).clamp(min=1e-8).rsqrt())
