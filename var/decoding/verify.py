"""The test of speculative decoding: which guesses stay, and what takes the place of the others.

A guess d, drawn from a law q, stays with probability min(1, p(d) / q(d)); otherwise the token is
drawn from what q lacks of p. Either way it is distributed as p (SJD, sections 3 and 5.1).

Letters: B images, L positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return ids (...) of laws (..., V): the first whose cumulative probability exceeds `uniform`.

    Sums are in float64: in float32 the tail of a large vocabulary would never be drawn.

    Args:
        probs: need not sum to 1 exactly.
        uniform: (...) in [0, 1).
    """
    sums = probs.cumsum(dim=-1, dtype=torch.float64)
    target = uniform[..., None] * sums[..., -1:]
    return torch.searchsorted(sums, target, right=True)[..., 0]


def stays(guess: Tensor, p: Tensor, q: Tensor, uniform: Tensor) -> Tensor:
    """Return which guesses stay, (B, L) bool.

    Args:
        guess: (B, L) ids, drawn from q.
        p, q: (B, L, V) laws: what is wanted, and what was drawn from.
        uniform: (B, L) in [0, 1).
    """
    wanted, drawn = (law.gather(-1, guess[..., None])[..., 0] for law in (p, q))
    return uniform * drawn < wanted


def remainder(p: Tensor, q: Tensor) -> Tensor:
    """Return the law (..., V) of what takes the place of a refuted guess: max(0, p - q), scaled.

    Where rounding leaves nothing of it, p and q are the same but for rounding, and it is p.
    """
    rest = (p - q).clamp(min=0)
    mass = rest.sum(dim=-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p)


def run_length(good: Tensor) -> Tensor:
    """Return how many of the first entries are true, (B, L) -> (B,) int64."""
    return good.long().cumprod(dim=1).sum(dim=1)
