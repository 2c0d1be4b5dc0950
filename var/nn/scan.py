"""The scan of a state-space layer, by chunks: matrix products instead of a step for each position.

State-space duality (Mamba-2, arXiv 2405.21060): inside a chunk the recurrence is attention with
decaying weights; between chunks only states are handed on. Letters: R rows, L positions, H heads,
P channels of a head, N size of the state, K chunks of Q positions.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

# Positions of a chunk: work inside a chunk grows with it, work between chunks shrinks.
CHUNK = 64


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
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        x, step, rate, b, c = (each.to(wide) for each in (x, step, rate, b, c))
        state = None if state is None else state.to(wide)
        length, chunks = x.shape[1], -(-x.shape[1] // chunk)
        size = -(-length // chunks)  # all chunks alike: the least that is added in vain
        parts = (_chunked(each, chunks, size) for each in (x, step, step * rate, b, c))
        y, last = _scan(*parts, state, keep)
        return y.flatten(2, 3)[:, :, :length].transpose(1, 2), last


def _scan(
    x: Tensor, step: Tensor, fade: Tensor, b: Tensor, c: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return y (R, H, K, Q, P) of what is in chunks (R, K, Q, ...), and the last state."""
    # Heads first, (R, H, K, Q, ...): what is multiplied then lies as products want it.
    step, fade, b, c = step.permute(0, 3, 1, 2), fade.permute(0, 3, 1, 2), b[:, None], c[:, None]
    x = step.contiguous()[..., None] * x.permute(0, 3, 1, 2, 4)  # laid out as its first factor
    # Differences of these are exponents: in float32 they would be rounded as their size is.
    gone = fade.to(torch.float32 if x.is_mps else torch.float64).cumsum(dim=-1)  # if there is one
    y = (_left(gone, gone, x.dtype) * (c @ b.mT)) @ x
    before, last = None if state is None else state[:, :, None], None
    if keep or x.shape[2] > 1:  # somebody reads on after a chunk
        late = (gone[..., -1:] - gone).to(x.dtype).exp()
        written = x.mT @ (late[..., None] * b)  # (R, H, K, P, N)
        before, last = _handed_on(written, gone[..., -1], state, keep)
    if before is not None:
        y = y.add_((gone.to(x.dtype).exp()[..., None] * c) @ before.mT)
    return y, last


def _chunked(x: Tensor, chunks: int, size: int) -> Tensor:
    """Return (R, K, Q, ...) of (R, L, ...), with zeros at the end: they write nothing, nor fade."""
    more = chunks * size - x.shape[1]
    if more:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, more))
    return x.unflatten(1, (chunks, size))


def _left(after: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is left (..., T, S) at T times of what was there at S, 0 of what was not yet.

    Args:
        after: (..., T) float64, logarithms of what is left of the beginning.
        before: (..., S) the same at the times of writing, the last S ones.
        dtype: of what is returned.
    """
    times, writings = after.shape[-1], before.shape[-1]
    ahead = torch.full((times, writings), -torch.inf, dtype=dtype, device=after.device)
    past = (after[..., :, None] + (-before)[..., None, :]).to(dtype)
    return past.add_(ahead.triu_(writings - times + 1)).exp_()


def _handed_on(
    written: Tensor, gone: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the state before each chunk (R, H, K, P, N), None if there is none, and the last one.

    Args:
        written: (R, H, K, P, N) what each chunk adds.
        gone: (R, H, K) logarithm of what a chunk leaves of the state before it.
        state: (R, H, P, N) before the first one; None: nothing.
        keep: whether the last one is asked for; None is returned instead if not.
    """
    gone = F.pad(gone.cumsum(dim=-1), (1, 0))
    before, last = None, written[:, :, 0]
    if written.shape[2] > 1:
        weights, each = _left(gone, gone[..., 1:], written.dtype), written.flatten(3)
        before = (weights[..., :-1, :] @ each).view_as(written)
        last = (weights[..., -1:, :] @ each).view_as(last) if keep else None
    if state is not None:
        left, first = gone.to(state.dtype).exp()[..., None, None], state[:, :, None]
        before = first if before is None else torch.addcmul(before, left[:, :, :-1], first)
        last = torch.addcmul(last, left[:, :, -1], state) if keep else None
    return before, last if keep else None
