"""Linear maps with packed weights, on CPUs that are faster at them.

PyTorch hands products on the CPU to whatever library suits their number type, with the weights as
they lie. oneDNN is often several times as fast with weights that are rearranged for it, once; how
much so depends on the processor, so it is measured (`packed_is_faster`), not assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Products of fewer rows are bound by reading the weights, which float32 ones do best as they lie.
_FEW_ROWS = 4
# Worth the memory of the packed weights, and beyond what noise in the measurement could feign.
LEAST_GAIN = 1.25


class Linear(nn.Linear):
    """`x @ weight.T + bias`.

    Attributes:
        pack: what holds the packed weights, used on the CPU outside autograd; None: there are none.
    """

    pack: Pack | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return self.product(input, self.bias)

    def product(self, x: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
        """Return the map of x (..., inputs) with another bias, and after it the tanh-GELU."""
        if self.pack is not None and self._plain(x) and _many_rows(x):
            return self.pack.product(x, self.weight, bias, gelu)
        y = F.linear(x, self.weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y

    def _plain(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )


def _many_rows(x: Tensor) -> bool:
    return x.dtype != torch.float32 or x.numel() >= _FEW_ROWS * x.shape[-1]


class Pack:
    """Weights of a linear map as oneDNN likes them: made at first use, renewed if they change."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._packed: Tensor | None = None

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        """Return the map of x (..., inputs), and after it the tanh-GELU if `gelu`."""
        version = 0 if weight.is_inference() else weight._version
        state = (weight.data_ptr(), weight.dtype, version)
        if self._packed is None or self._state != state:
            self._state, self._packed = state, packed(weight)
        return packed_linear(x, self._packed, bias, gelu)

    def __deepcopy__(self, memo: Any) -> Pack:
        return Pack()

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, ()


def packed(weight: Tensor) -> Tensor:
    """Return a copy of weights (outputs, inputs) that only `packed_linear` can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """Return `F.linear(x, weight, bias)` for packed weights, and after it the tanh-GELU."""
    after = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)


@lru_cache(maxsize=4)
def packed_is_faster(dtype: torch.dtype) -> bool:
    """Return whether the CPU is clearly faster with packed weights: measured once, quickly."""
    # Not random: nobody's random stream shall depend on what was measured when.
    x, weight = torch.ones(32, 1024, dtype=dtype), torch.ones(4096, 1024, dtype=dtype)
    try:
        ready = packed(weight)
        packed_linear(x, ready)
    except (RuntimeError, AttributeError):  # no oneDNN, or not in this number type
        return False
    return _gain(lambda: F.linear(x, weight), lambda: packed_linear(x, ready)) > LEAST_GAIN


@lru_cache(maxsize=1)
def bfloat16_is_faster() -> bool:
    """Return whether the CPU is clearly faster in bfloat16: measured once, in an instant."""
    x, weight = torch.ones(1024, 1024), torch.ones(1024, 1024)
    less, short = x.bfloat16(), weight.bfloat16()
    return _gain(lambda: F.linear(x, weight), lambda: F.linear(less, short)) > LEAST_GAIN


@torch.inference_mode()
def _gain(old: Callable[[], Tensor], new: Callable[[], Tensor], repeats: int = 5) -> float:
    """Return how many times faster `new` is than `old`."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):  # in turns, so that other load meets both alike
        for each, run in zip(times, (old, new), strict=True):
            start = perf_counter()
            run()
            each.append(perf_counter() - start)
    before, after = (median(each[1:]) for each in times)
    return before / after


def choose_routes(module: nn.Module, *, compiled: bool = False) -> None:
    """Let every `Linear` in a module on the CPU pack its weights, if that is faster here.

    Args:
        module: for inference; weights that change are packed again.
        compiled: its maps are called from compiled code.
    """
    for part in module.modules():
        if isinstance(part, Linear):
            weight = part.weight
            wanted = weight.device.type == "cpu" and packed_is_faster(weight.dtype)
            part.pack = Pack() if wanted else None
            vars(part).pop("product", None)  # of an earlier choice, perhaps on another device
            if wanted and compiled:  # nothing in it could be compiled
                part.product = torch.compiler.disable(part.product)
