"""The compressed cache: each layer keeps, per row and head, what its budget allows (ScaleKV).

All that is kept and the whole current span can be attended to; only then something is dropped. All
lengths follow from the budget, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from var.cache.base import Layered, Unkeyed, check_keys, owned
from var.cache.scale_budget import Budget
from var.cache.scale_select import Selection
from var.schedule import Grid, Span


class ScaleMemory(Unkeyed):
    """The keys and values that one layer keeps, (R, N, S, d) each, in the order they were read.

    Args:
        layer: which one, from 0.
        groups: how many of the first groups will be read; None: the whole schedule.
        budget: what it may hold.
        selection: how that is chosen.
        grids: see `Scale`.
    """

    def __init__(
        self,
        layer: int,
        groups: int | None,
        budget: Budget,
        selection: Selection,
        grids: Sequence[Grid | None],
    ) -> None:
        super().__init__()
        self._selection, self._grids = selection, grids
        self._capacities = [row[layer] for row in budget.capacities[:groups]]
        self._schedule = budget.schedule
        self._kept: tuple[Tensor, Tensor] | None = None
        self._read = 0

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Return everything kept, followed by `k` and `v`; then drop what is beyond the budget.

        Raises:
            ValueError: the budget is for another schedule.
        """
        if span.schedule != self._schedule:
            raise ValueError(
                f"the budget is for the ladder {self._schedule.grids}, "
                f"the span belongs to {span.schedule.grids}"
            )
        past, self._kept = self._kept if span.start else None, None
        if past is not None:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(past, (k, v), strict=True))
            del past  # held twice no longer than need be
        self._kept = self._compressed(q, k, v, span)
        self._read = span.positions.stop
        return k, v

    def _compressed(
        self, q: Tensor, keys: Tensor, values: Tensor, span: Span
    ) -> tuple[Tensor, Tensor] | None:
        capacity = self._capacities[span.stop] if span.stop < len(self._capacities) else 0
        if not capacity:  # nobody reads on, or there is no room
            return None
        if keys.shape[2] <= capacity:
            return owned(keys), owned(values)
        q = q[:, :, -span.sizes[-1] :]
        kept = self._selection.keep(q, keys, capacity, self._grids[span.stop - 1])
        kept = kept[..., None].expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, kept), values.gather(2, kept)

    def rewind(self, positions: int) -> None:
        """Forget everything at 0.

        Raises:
            ValueError: neither 0 nor the present: what was dropped cannot be brought back.
        """
        if positions not in (0, self._read):
            raise ValueError(
                f"a compressed memory that has read {self._read} positions cannot go back to "
                f"{positions}: rewind it to 0, or take Dense or Static"
            )
        if not positions:
            self._kept, self._read = None, 0
            self.forget()

    def narrow(self, rows: int) -> None:
        """Keep the first `rows` rows."""
        super().narrow(rows)
        if self._kept is not None:
            keys, values = self._kept
            self._kept = owned(keys[:rows]), owned(values[:rows])

    def tensors(self) -> Sequence[Tensor]:
        """Return the keys and values held."""
        return self._kept or ()

    def release(self) -> None:
        """Forget everything."""
        self.rewind(0)


class Scale(Layered):
    """A cache that holds what a budget allows; it cannot be rewound but to 0.

    Args:
        layers: number of layers of the model.
        groups: how many of the first groups will be read, after which nothing is kept; None: the
            whole schedule.
        budget: how many positions each layer may hold while each group is read.
        window: see `Selection`, as the next three.
        pool: of neighbours' scores, max or mean.
        width: number of neighbours pooled.
        score: logits or weights.
        grids: as which grid each group is divided into patches, None: not at all; by default all
            as what they are. The published code takes its squares whatever the image's shape.
        recurrent: refused, there is nothing to compress.

    Raises:
        UserError: the model has no keys.
        ValueError: the budget is for another number of layers, or a setting out of range.
    """

    rewinds = False

    def __init__(
        self,
        layers: int,
        groups: int | None = None,
        *,
        budget: Budget,
        window: int = 16,
        pool: str = "max",
        width: int = 5,
        score: str = "logits",
        grids: Sequence[Grid | None] | None = None,
        recurrent: bool = False,
    ) -> None:
        check_keys(recurrent, "cache scale", "use cache=static or cache=dense")
        if budget.layers != layers:
            raise ValueError(f"the budget is for {budget.layers} layers, the model has {layers}")
        selection = Selection(window=window, pool=pool, width=width, score=score)
        schedule = budget.schedule
        if grids is None:
            whole = zip(schedule.grids, schedule.cells, strict=True)
            grids = [grid if cells is None else None for grid, cells in whole]
        super().__init__(
            [ScaleMemory(layer, groups, budget, selection, grids) for layer in range(layers)]
        )

    def rewind(self, groups: int) -> None:
        """Forget everything at 0; nothing happens if no more than `groups` were read.

        Raises:
            ValueError: only some of the groups would have to be forgotten.
        """
        if groups and groups >= self.seen:
            return
        if groups:
            raise ValueError(
                f"a compressed cache that has read {self.seen} groups cannot go back to {groups}: "
                "rewind it to 0, or take Dense or Static"
            )
        for memory in self.layers:
            memory.rewind(0)
        self.seen = 0
