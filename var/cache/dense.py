"""The dense cache: keys and values grow by concatenation, states are replaced.

Simple, takes no more memory than needed, works under autograd; `var.cache.static` is faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from var.cache.base import Plain, Unkeyed
from var.schedule import Span


class DenseMemory(Unkeyed):
    """All keys and values of one layer, (R, N, S, d) each, or its state.

    Args:
        groups: see `Dense`.
    """

    def __init__(self, groups: int | None = None) -> None:
        super().__init__(groups)
        self._kept: tuple[Tensor, Tensor] | None = None

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Return everything remembered, followed by `k` and `v`; remember them too."""
        if self._kept is not None and span.start:
            keys, values = self._kept
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        self._kept = k, v
        return k, v

    def rewind(self, positions: int) -> None:
        """Keep the first `positions` positions; 0 forgets everything."""
        if not positions:
            self._kept = None
            self.forget()
        elif self._kept is not None:
            keys, values = self._kept
            self._kept = keys[:, :, :positions], values[:, :, :positions]

    def narrow(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        super().narrow(rows)
        if self._kept is not None:
            keys, values = self._kept
            self._kept = keys[:rows], values[:rows]

    def tensors(self) -> Sequence[Tensor]:
        """Return the keys and values held, or the state."""
        return self._kept or self._state or ()

    def release(self) -> None:
        """Forget everything."""
        self.rewind(0)


class Dense(Plain):
    """A cache that grows by concatenation.

    Args:
        layers: number of layers of the model.
        groups: after how many of the first groups no state is asked for any more; None: the whole
            schedule. Keys grow as far as need be.
        recurrent: layers hand on a state.
    """

    def __init__(self, layers: int, groups: int | None = None, *, recurrent: bool = False) -> None:
        super().__init__([DenseMemory(groups) for _ in range(layers)], recurrent=recurrent)
