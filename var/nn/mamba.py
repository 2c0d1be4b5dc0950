"""The Mamba-2 mixer: a causal convolution and a linear recurrence instead of attention.

Causal position by position, in time linear in their number; what it remembers of all positions so
far does not grow (M-VAR, section 3; Mamba-2, arXiv 2405.21060). Parameters are named and laid out
as in `mamba_ssm`'s `Mamba2`. Letters: R rows, L positions, D width, E inner width, H heads, P
channels of a head, N size of the state, W width of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.nn.linear import Linear
from var.nn.rms import RMSNorm
from var.nn.scan import scan

# Of mamba_ssm's kernels: the published one.
_KERNEL_CHUNK = 256


class State(NamedTuple):
    """What is remembered of all positions so far; its size does not depend on their number.

    Attributes:
        tail: (R, W - 1, E + 2 N) the last inputs of the convolution.
        ssm: (R, H, P, N) float32, the state of the recurrence.
    """

    tail: Tensor
    ssm: Tensor


class Mamba2(nn.Module):
    """`y = out_proj(norm(scan(conv(in_proj(u))) * silu(z)))`.

    Args:
        width: of input and output, D.
        state: N.
        kernel: width of the convolution, W.
        expand: inner width E in units of the width.
        head: channels of a head P; divides the inner width.
        eps: of the norm.

    Raises:
        ValueError: the heads do not divide the inner width, or a size is below 1.
    """

    # Logarithms and offsets that go through exponentials: rounded, they would be off by percents.
    FLOAT32 = ("dt_bias", "A_log", "D")

    def __init__(
        self,
        width: int,
        *,
        state: int = 64,
        kernel: int = 4,
        expand: int = 2,
        head: int = 64,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if min(width, state, kernel, expand, head) < 1:
            raise ValueError("all sizes of a Mamba layer must be 1 or more")
        inner = expand * width
        if inner % head:
            raise ValueError(
                f"heads of {head} channels do not divide {expand} times the width {width}: "
                f"use a multiple of {head // math.gcd(expand, head)}"
            )
        self.heads, self.head = inner // head, head
        channels = inner + 2 * state
        self.sizes = (inner, channels, self.heads)  # of what is gated, convolved, and the steps
        self.parts = (inner, state, state)
        self.in_proj = Linear(width, sum(self.sizes), bias=False)
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = RMSNorm(inner, eps)
        self.out_proj = Linear(inner, width, bias=False)
        self.initialise()

    def forward(
        self, u: Tensor, state: tuple[Tensor, Tensor] | None = None, *, keep: bool = True
    ) -> tuple[Tensor, State | None]:
        """Return y (R, L, D) of the positions that follow those of a state, and the state after.

        Args:
            u: (R, L, D).
            state: a `State` of the positions before; None: there are none.
            keep: whether the state after is asked for; None is returned instead if not.
        """
        z, xbc, steps = self.in_proj(u).split(self.sizes, dim=-1)
        tail, ssm = (None, None) if state is None else state
        mixed, tail = self.convolve(xbc, tail)
        steps = F.softplus(steps.float() + self.dt_bias.float())
        y, ssm = self.recur(mixed, steps, ssm, keep=keep)
        after = None if ssm is None else State(tail, ssm)
        return self.out_proj(self.gated(y, z).to(u.dtype)), after

    def convolve(self, xbc: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `silu(conv(xbc))` (R, L, E + 2 N), and the tail of its input (R, W - 1, E + 2 N).

        Args:
            xbc: (R, L, E + 2 N).
            tail: of what came before; None: zeros.
        """
        weight = self.conv1d.weight
        before, length = weight.shape[-1] - 1, xbc.shape[1]
        if tail is None:
            xbc = F.pad(xbc, (0, 0, before, 0))
        else:
            xbc = torch.cat([tail.to(xbc.dtype), xbc], dim=1)
        # As pictures of a single row, channels last: twice as fast on CPUs, and nothing to permute.
        row = xbc.mT[:, :, None].contiguous(memory_format=torch.channels_last)
        bias, groups = self.conv1d.bias, self.conv1d.groups
        mixed = F.conv2d(row, weight[:, :, None], bias, groups=groups).squeeze(2).mT
        return F.silu(mixed), xbc[:, length:]

    def recur(
        self, mixed: Tensor, steps: Tensor, state: Tensor | None, *, keep: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the recurrence reads, D's skip included, (R, L, E), and its last state.

        Args:
            mixed: (R, L, E + 2 N) what comes out of the convolution: x, B and C.
            steps: (R, L, H) float32, positive.
            state: (R, H, P, N) before; None: nothing.
            keep: whether the last state is asked for.
        """
        x, b, c = mixed.split(self.parts, dim=-1)
        x, rate = x.unflatten(-1, (self.heads, self.head)), -self.A_log.float().exp()
        if _suits(x) and _installed():
            y, last = _fused(x, steps, rate, b, c, self.D.float(), state)
            return y.flatten(2), last if keep else None
        y, last = scan(x, steps, rate, b, c, state, keep=keep)
        # Laid out position by position, unlike y: what comes next wants it so.
        skip = x.to(y.dtype) * self.D.to(y.dtype)[:, None]
        return skip.add_(y).flatten(2), last

    def gated(self, y: Tensor, z: Tensor) -> Tensor:
        """Return `norm(y silu(z))` (R, L, E) float32: the gate comes before the norm."""
        return self.norm(y.float() * F.silu(z.float()))

    @torch.no_grad()
    def initialise(self, rng: torch.Generator | None = None) -> None:
        """Draw rates -1..-16, and steps log-uniform in 0.001..0.1: what Mamba-2 begins with.

        Args:
            rng: of the CPU; by default the global one, of whatever the device is.
        """
        rates, steps = torch.rand(2, self.heads, generator=rng)
        self.A_log.copy_((1 + 15 * rates).log())
        self.dt_bias.copy_((1e-3 * 100**steps).expm1().log())  # softplus's inverse
        nn.init.ones_(self.D)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mamba2:
        # Whatever changes the type of all weights leaves these as they are, or widens them.
        kept = [self.get_parameter(name) for name in self.FLOAT32]
        exact = {id(t) for p in kept for t in (p, p.grad) if t is not None}

        def careful(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if id(tensor) in exact and new.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(new.device, torch.float32)
            return new

        super()._apply(careful, recurse)
        return self


def _suits(x: Tensor) -> bool:
    # Not for float32: products would be rounded to TF32.
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


@torch.compiler.assume_constant_result
def _installed() -> bool:
    return _kernel() is not None


@torch.compiler.disable
def _fused(
    x: Tensor,
    steps: Tensor,
    rate: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return what the kernel makes of the arguments of `scan`, D's skip included."""
    kernel = _kernel()
    assert kernel is not None
    return kernel(
        x,
        steps,
        rate,
        b[:, :, None],  # a single group of heads
        c[:, :, None],
        _KERNEL_CHUNK,
        D=d,
        initial_states=state,
        return_final_states=True,
    )


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return `mamba_ssm`'s scan, if it is installed and works here."""
    try:
        return import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    except (ImportError, AttributeError, RuntimeError):
        return None
