"""The categorical head: one of V codes per position, filtered and drawn as VAR publishes it.

Letters: B images, R rows, L positions of a span, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from var.nn.cross_entropy import cross_entropy
from var.nn.linear import Linear
from var.random import Rng
from var.sampling import Guide, Sampling
from var.schedule import Span

_HEEDS = frozenset({"guidance", "guided_groups", "temperature", "top_k", "top_p", "temper_last"})


@dataclass(frozen=True, eq=False)
class CategoricalPrediction:
    """Independent distributions over codes.

    Attributes:
        logits: (B, L, V) float32; excluded codes are at -inf.
        progress: how far the image is, 0..1.
    """

    logits: Tensor
    progress: float = 0.0

    @cached_property
    def probs(self) -> Tensor:
        """Probabilities (B, L, V) float32."""
        return self.logits.softmax(dim=-1)

    def shaped(self, sampling: Sampling) -> CategoricalPrediction:
        """Return the prediction after top-k, then top-p (section 4.4), and temperature."""
        before, after = sampling.temperature, 1.0
        if sampling.temper_last:
            before, after = after, before
        logits = self.logits if before == 1 else self.logits / before
        logits = filtered(logits, sampling.top_k, sampling.top_p)
        kind = SmoothPrediction if sampling.smooth else CategoricalPrediction
        return kind(logits if after == 1 else logits / after, self.progress)

    def sample(self, rng: Rng | None = None) -> Tensor:
        """Draw ids (B, L), `argmax(probs / Exp(1) noise)`; without `rng` the most likely ones."""
        if rng is None:
            return self.logits.argmax(dim=-1)
        noise = rng.exponential(*self.logits.shape[1:]).to(self.logits.device)
        return (self.probs / noise).argmax(dim=-1)


class SmoothPrediction(CategoricalPrediction):
    """Draws mixtures of codes with Gumbel-softmax weights: VAR's `more_smooth` (section 4.5)."""

    def sample(self, rng: Rng | None = None) -> Tensor:
        """Draw weights (B, L, V) that sum to 1, or the most likely ids (B, L) without `rng`."""
        if rng is None:
            return super().sample()
        noise = rng.exponential(*self.logits.shape[1:]).to(self.logits.device)
        tau = max(0.27 * (1 - 0.95 * self.progress), 0.005)
        return ((self.logits * (1 + self.progress) - noise.log()) / tau).softmax(dim=-1)


class Categorical(nn.Module):
    """A linear map to the logits of the codes.

    Args:
        width: of the features, D.
        vocabulary: number of codes V.
        label_smoothing: of the training loss, 0..1.
        bias: of the map.
        mixtures: whether the canvas can be written with mixtures of codes.

    Attributes:
        vocabulary: number of codes V.
    """

    def __init__(
        self,
        width: int,
        vocabulary: int,
        *,
        label_smoothing: float = 0.0,
        bias: bool = True,
        mixtures: bool = True,
    ) -> None:
        super().__init__()
        self.linear = Linear(width, vocabulary, bias=bias)
        self.vocabulary, self.label_smoothing = vocabulary, label_smoothing
        self.heeds = _HEEDS | {"smooth"} if mixtures else _HEEDS

    def forward(self, h: Tensor, span: Span, guide: Guide) -> CategoricalPrediction:
        """Return the guided distributions of features (R, L, D)."""
        return CategoricalPrediction(guide.of(lambda h: self.linear(h).float(), h), guide.progress)

    def check(self, sampling: Sampling) -> None:
        """Do nothing: all numbers in range are right."""

    def loss(self, h: Tensor, tokens: Tensor, span: Span, rng: Rng) -> Tensor:
        """Return the cross-entropy (B, L) float32 of ids (B, L) given features (B, L, D)."""
        return cross_entropy(
            self.linear,
            h,
            tokens,
            vocabulary=self.vocabulary,
            label_smoothing=self.label_smoothing,
        )


def filtered(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Return logits (..., V) with the codes that top-k, then top-p exclude at -inf (section 4.4).

    Top-k excludes what is strictly below the k-th largest logit. Top-p adds up the probabilities
    of what is left from the smallest on and excludes codes while the sum is at most `1 - top_p`,
    but never the largest. Only the k largest are ever sorted; no value is read by the host.
    """
    vocabulary = logits.shape[-1]
    top_k = min(top_k or vocabulary, vocabulary)
    if top_k == vocabulary and not top_p:
        return logits
    top = logits.topk(top_k, dim=-1).values
    logits = logits.masked_fill(logits < top[..., -1:], -torch.inf)
    return _nucleus(logits, top, top_p) if top_p else logits


def _nucleus(logits: Tensor, top: Tensor, top_p: float) -> Tensor:
    """Apply top-p to logits (..., V) of which `top` (..., k) are the largest, in falling order.

    More than k may be left, all further ones equal to the last of `top`. Among equals on the edge
    those of lower index stay, so that what `argmax` picks is never excluded.
    """
    k, least = top.shape[-1], 1 - top_p
    probs = (top - logits.logsumexp(dim=-1, keepdim=True)).exp()
    last = probs[..., -1:]
    spare = (logits > -torch.inf).sum(dim=-1, keepdim=True) - k
    tail = spare * last + probs.flip(-1).cumsum(dim=-1).flip(-1)
    stay = (tail > least).sum(dim=-1, keepdim=True).clamp(min=1)
    dropped = (least / last.clamp(min=torch.finfo(last.dtype).tiny)).floor()
    stay = stay + torch.where(stay == k, (spare - dropped).clamp(min=0), 0).long()

    edge = top.gather(-1, stay.clamp(max=k) - 1)
    equal = logits == edge
    rank = equal.cumsum(dim=-1, dtype=torch.int32)
    room = stay - (logits > edge).sum(dim=-1, keepdim=True)
    return logits.masked_fill((logits < edge) | (equal & (rank > room)), -torch.inf)
