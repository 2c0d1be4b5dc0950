"""The scan of a state-space layer, by chunks: matrix products instead of a step for each position.

State-space duality (Mamba-2, arXiv 2405.21060): inside a chunk the recurrence is attention with
decaying weights; between chunks only states are handed on. Letters: R rows, L positions, H heads,
P channels of a head, N size of the state, K chunks of Q positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Positions of a chunk: work inside a chunk grows with it, work between chunks shrinks.
CHUNK = 128


def scan(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    keep: bool = True,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Return `y_t = S_t c_t` (R, L, H, P), and the last state, of a linear recurrence per head.

    `S_t = exp(step_t rate) S_{t-1} + step_t x_t b_t^T` (M-VAR, section 3). Computed, whatever the
    types, in float32 at least, and differentiable.

    Args:
        x: (R, L, H, P) what is written.
        step: (R, L, H) how much of it, 0 or more.
        rate: (H,) at which the state fades, negative.
        b: (R, L, N) where it is written, for all heads alike.
        c: (R, L, N) where it is read.
        state: (R, H, P, N) what there was before; None: nothing.
        keep: whether the last state is asked for.
        chunk: most positions of a chunk, 1 or more.

    Returns:
        In x's type or float32 if that is wider: y, and S_L (R, H, P, N), None without `keep`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        step = step.to(wide)
        x = x.to(wide) * step[..., None]
        fade, b, c = step * rate.to(wide), b.to(wide), c.to(wide)
        return _scan(x, fade, b, c, state, keep, chunk)


def _scan(
    x: Tensor, fade: Tensor, b: Tensor, c: Tensor, state: Tensor | None, keep: bool, chunk: int
) -> tuple[Tensor, Tensor | None]:
    (length, heads), chunks = x.shape[1:3], -(-x.shape[1] // chunk)
    size = -(-length // chunks)  # all chunks alike: the least that is added in vain
    # What is added writes nothing and does not fade: (R, K, Q, ...).
    x, fade, b, c = (_chunked(each, chunks, size) for each in (x, fade, b, c))
    # Differences of these are exponents: in float32 they would be rounded as their size is.
    gone = fade.mT.double().cumsum(dim=-1)  # (R, K, H, Q)
    past = (gone[..., :, None] - gone[..., None, :]).to(x.dtype)
    ahead = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    weights = past.masked_fill(ahead, -torch.inf).exp() * (c @ b.mT)[:, :, None]
    y = (weights @ x.transpose(2, 3)).transpose(2, 3)  # (R, K, Q, H, P)
    states = None
    if keep or state is not None or chunks > 1:
        left = (gone[..., -1:] - gone).to(x.dtype).exp().mT[..., None] * x
        written = (left.flatten(3).mT @ b).unflatten(2, (heads, -1))  # (R, K, H, P, N)
        states = _handed_on(written, gone[..., -1], state)
        read = (c @ states[:, :-1].flatten(2, 3).mT).unflatten(3, (heads, -1))
        y = torch.addcmul(y, read, gone.to(x.dtype).exp().mT[..., None])
    last = states[:, -1] if keep and states is not None else None
    return y.flatten(1, 2)[:, :length], last


def _chunked(x: Tensor, chunks: int, size: int) -> Tensor:
    """Return (R, K, Q, ...) of (R, L, ...), with zeros at the end."""
    more = chunks * size - x.shape[1]
    if more:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, more))
    return x.unflatten(1, (chunks, size))


def _handed_on(written: Tensor, gone: Tensor, state: Tensor | None) -> Tensor:
    """Return the state before each chunk and after the last one, (R, K + 1, H, P, N).

    Args:
        written: (R, K, H, P, N) what each chunk adds.
        gone: (R, K, H) logarithm of what a chunk leaves of the state before it.
        state: (R, H, P, N) before the first one; None: nothing.
    """
    first = torch.zeros_like(written[:, :1]) if state is None else state[:, None].to(written.dtype)
    written = torch.cat([first, written], dim=1)
    gone = F.pad(gone, (0, 0, 1, 0)).cumsum(dim=1).mT  # (R, H, K + 1)
    past = (gone[..., :, None] - gone[..., None, :]).to(written.dtype)
    chunks = past.shape[-1]
    ahead = torch.ones(chunks, chunks, dtype=torch.bool, device=past.device).triu(1)
    weights = past.masked_fill(ahead, -torch.inf).exp()
    each = written.transpose(1, 2).flatten(3)  # (R, H, K + 1, P N)
    return (weights @ each).transpose(1, 2).unflatten(3, written.shape[3:])
