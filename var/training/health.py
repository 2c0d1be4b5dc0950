"""Codebook health: what keeps multi-scale codebooks from collapsing, and the figures that show it.

Three measures, each a switch: the codebook starts on data (`start`), codes that fall out of use are
put back on data (`revive`), and - in the tokenizer itself - scales are standardised so that all of
them can use all codes. `docs/tokenizer-training.md` has the ablation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from var.schedule import Schedule
from var.tokenizers.quantizer import Quantizer
from var.tokenizers.residual import MultiScaleQuantizer

AnyQuantizer = MultiScaleQuantizer | Quantizer


def usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per scale, the share of codes in use and the perplexity of counts (K, V).

    Usage is in 0..1; perplexity, exp of the entropy, in 1..V: the number of codes in equal use
    that would be as hard to guess.
    """
    share = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(dim=1)
    return (counts > 0).float().mean(dim=1), entropy.exp()


def count_codes(tokens: Sequence[Tensor], vocabulary: int) -> Tensor:
    """Return how often each code occurs at each scale, (K, V) float32."""
    counts = torch.zeros(len(tokens), vocabulary, device=tokens[0].device)
    for row, ids in zip(counts, tokens, strict=True):
        # Not bincount, which makes the host wait for the largest id.
        row.scatter_add_(0, ids.flatten(), torch.ones(ids.numel(), device=ids.device))
    return counts


def moments(vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean (K, C) and mean outer product (K, C, C) per scale of vectors (B, L_k, C)."""
    flat = [v.float().flatten(0, 1) for v in vectors]
    return torch.stack([v.mean(0) for v in flat]), torch.stack([v.mT @ v / len(v) for v in flat])


def covariance(mean: Tensor, square: Tensor) -> Tensor:
    """Return the covariance (K, C, C) of such moments."""
    return square - mean[:, :, None] * mean[:, None, :]


@torch.no_grad()
def start(
    quantizer: AnyQuantizer, latent: Tensor, schedule: Schedule, rng: torch.Generator
) -> None:
    """Put statistics and codebook on data: every scale gives an equal share of the codes.

    Latents (B, C, h, w) of one large batch will do.
    """
    vectors = quantizer.seeds(latent, schedule)
    if quantizer.standard is not None:
        mean, square = moments(vectors)
        quantizer.standard.follow(mean, covariance(mean, square), share=1.0)
        vectors = [(v - mean[k]) @ quantizer.standard.white[k] for k, v in enumerate(vectors)]
    size = len(quantizer.codebook.weight)
    quantizer.codebook.weight.copy_(draw(vectors, size, rng))


def draw(vectors: Sequence[Tensor], count: int, rng: torch.Generator) -> Tensor:
    """Draw `count` vectors (count, C), evenly from all scales; slightly jittered, for repeats."""
    picked = []
    for group in range(len(vectors)):
        share = (count + group) // len(vectors)
        flat = vectors[group].reshape(-1, vectors[group].shape[-1])
        picked.append(flat[torch.randint(len(flat), (share,), generator=rng).to(flat.device)])
    chosen = torch.cat(picked)[torch.randperm(count, generator=rng).to(vectors[0].device)]
    noise = torch.randn(chosen.shape, generator=rng).to(chosen)
    return chosen + 0.01 * chosen.std() * noise


class Health:
    """Count codes in use and revive the others.

    Args:
        quantizer: the quantizer that is trained, of K scales.
        interval: steps between revivals; 0 never revives.
        threshold: a code is dead when used less than this share of the average.
    """

    def __init__(self, quantizer: AnyQuantizer, interval: int, threshold: float = 0.05) -> None:
        self.quantizer, self.interval, self.threshold = quantizer, interval, threshold
        weight = quantizer.codebook.weight
        self.window = torch.zeros(quantizer.scales, len(weight), device=weight.device)
        self.since = torch.zeros_like(self.window)

    def to(self, device: torch.device) -> None:
        """Move the counts to a device."""
        self.window, self.since = self.window.to(device), self.since.to(device)

    def observe(self, counts: Tensor) -> None:
        """Add the counts (K, V) of a step, summed over processes."""
        self.window += counts
        self.since += counts

    def report(self) -> dict[str, Tensor]:
        """Return usage and perplexity per scale since the last report, and start anew."""
        used, perplexity = usage(self.window)
        self.window.zero_()
        figures = {f"usage/scale{k}": value for k, value in enumerate(used)}
        return figures | {f"perplexity/scale{k}": value for k, value in enumerate(perplexity)}

    @torch.no_grad()
    def revive(
        self, vectors: Sequence[Tensor], optimizer: torch.optim.Optimizer, rng: torch.Generator
    ) -> int:
        """Move dead codes onto `vectors` (B, L_k, C) and forget their momentum; return how many.

        With equal `vectors` and `rng` on all processes, all make the same move.
        """
        total = self.since.sum(dim=0)
        dead = (total < self.threshold * total.mean()).nonzero().flatten()
        self.since.zero_()
        if len(dead):
            weight = self.quantizer.codebook.weight
            weight[dead] = draw(vectors, len(dead), rng).to(weight)
            for moment in optimizer.state.get(weight, {}).values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment[dead] = 0
        return len(dead)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts, for checkpoints."""
        return {"window": self.window, "since": self.since}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the counts."""
        self.window.copy_(state["window"])
        self.since.copy_(state["since"])
