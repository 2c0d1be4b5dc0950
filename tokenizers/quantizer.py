"""The single-scale quantizer: each cell of a latent grid becomes the code nearest to it.

Section numbers refer to the published system (LlamaGen, arXiv 2406.06525).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var.schedule import Schedule
from var.tokenizers.chain import Chain, check_chain
from var.tokenizers.codebook import Codebook
from var.tokenizers.residual import Quantised

# Of the softmax over codes whose entropy is asked for, and what keeps its logarithms finite.
_TEMPERATURE, _EPS = 0.01, 1e-5


class Quantizer(nn.Module):
    """Quantise a latent grid, cell by cell, against one codebook.

    Args:
        vocabulary: number of codes V.
        channels: latent channels C.
        unit: codes and latents are directions: both of length 1, before anything else.
        commitment: weight of the term that ties the encoder to the codes (published `beta`).
        entropy: weight of the term that makes single choices sure and all of them together even;
            0 leaves it out.
    """

    standard = None  # one scale: there are no others to be brought in line with
    scales = 1

    def __init__(
        self,
        *,
        vocabulary: int,
        channels: int,
        unit: bool = True,
        commitment: float = 0.25,
        entropy: float = 0.0,
    ) -> None:
        super().__init__()
        self.codebook = Codebook(size=vocabulary, channels=channels, normalised=unit)
        self.unit, self.commitment, self.entropy = unit, commitment, entropy
        self.rules = (unit,)  # what decides, besides the weights, what tokens mean
        if unit:  # as long as they will be read: what a step turns them by depends on it
            with torch.no_grad():
                self.codebook.weight.copy_(self._unit(self.codebook.weight))

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.codebook.weight.shape[1]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return code vectors (B, L, C) of ids (B, L)."""
        return self._unit(self.codebook(tokens))

    def blank(self, batch: int, schedule: Schedule) -> Chain:
        """Return a canvas on which no token is written."""
        return Chain.blank(batch, schedule, self.embed, self.codebook.weight.device)

    def vectors(self, latent: Tensor) -> Tensor:
        """Return what is looked up for a latent (B, C, h, w): rows (B, h w, C)."""
        return self._unit(rearrange(latent, "B C h w -> B (h w) C"))

    def quantise(self, latent: Tensor, schedule: Schedule) -> list[Tensor]:
        """Return the ids of the one scale, (B, h w); in float32 whatever the autocast state."""
        _check(latent, schedule)
        with torch.autocast(latent.device.type, enabled=False):
            return [self.codebook.nearest(self.vectors(latent.float()))]

    def seeds(self, latent: Tensor, schedule: Schedule) -> list[Tensor]:
        """Return vectors (B, h w, C) on which codes could lie."""
        return [self.vectors(latent)]

    def forward(self, latent: Tensor, schedule: Schedule) -> Quantised:
        """Quantise for training (section 3.1): in float32 whatever the autocast state."""
        _check(latent, schedule)
        with torch.autocast(latent.device.type, enabled=False):
            z = self.vectors(latent.float())
            ids = self.codebook.nearest(z)
            codes = self.embed(ids)
            loss = torch.stack(list(self.losses(z, codes).values())).sum()
            through = rearrange(z + (codes - z).detach(), "B (h w) C -> B C h w", h=latent.shape[2])
            return Quantised(through, loss, [ids], [z.detach()])

    def losses(self, z: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Return codebook, commitment and entropy terms (section 5) of vectors (B, L, C)."""
        losses = {
            "codebook": F.mse_loss(codes, z.detach()),
            "commitment": self.commitment * F.mse_loss(z, codes.detach()),
        }
        if self.entropy:
            losses["entropy"] = self.entropy * self._evenness(z.flatten(0, 1))
        return losses

    def _evenness(self, z: Tensor) -> Tensor:
        """Return the mean entropy of single choices less the entropy of their mean."""
        codes = self._unit(self.codebook.weight)
        squares = z.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1)
        affinity = (2 * z @ codes.T - squares) / _TEMPERATURE
        probs = affinity.softmax(dim=-1)
        mean = probs.mean(dim=0)
        single = -(probs * (affinity + _EPS).log_softmax(dim=-1)).sum(dim=-1).mean()
        return single + (mean * (mean + _EPS).log()).sum()

    def _unit(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.unit else vectors


def _check(latent: Tensor, schedule: Schedule) -> None:
    check_chain(schedule)
    if tuple(latent.shape[-2:]) != schedule.grids[0]:
        raise ValueError(
            f"the latent grid is {tuple(latent.shape[-2:])}, the schedule's {schedule.grids[0]}"
        )
