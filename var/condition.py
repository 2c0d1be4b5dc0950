"""What images shall show: classes, or features of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the images shall show.

    Attributes:
        labels: (B,) int64 class ids; -1 means no condition.
        text: (B, T, E) features by a text encoder; where there are any, labels say only whether
            they count (0) or not (-1).
        valid: (B, T) bool, which of them are of the text, not padding; None: all.
    """

    labels: Tensor
    text: Tensor | None = None
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ValueError(
                f"labels must be whole numbers of shape (B,), got {self.labels.dtype} "
                f"of shape {tuple(self.labels.shape)}"
            )
        for name, dimensions in (("text", 3), ("valid", 2)):
            value = getattr(self, name)
            if value is not None and (value.ndim != dimensions or len(value) != len(self)):
                raise ValueError(f"{name} does not fit {len(self)} labels: {tuple(value.shape)}")
        text, valid = self.text, self.valid
        if text is not None and valid is not None and text.shape[:2] != valid.shape:
            raise ValueError(f"{text.shape[1]} features, of which {valid.shape[1]} are marked")

    @classmethod
    def of_text(cls, text: Tensor, valid: Tensor | None = None) -> Condition:
        """Return the condition of features (B, T, E) by a text encoder, valid ones marked (B, T).

        Valid ones come to lie last, as models read them, and the others become zeros (LlamaGen,
        section 4).
        """
        labels = torch.zeros(len(text), dtype=torch.int64, device=text.device)
        if valid is None:
            return cls(labels, text)
        valid = valid.bool()
        order = valid.long().argsort(dim=1, stable=True)
        valid = valid.gather(1, order)
        text = text.gather(1, order[..., None].expand_as(text))
        return cls(labels, text * valid[..., None], valid)

    @property
    def empty(self) -> bool:
        """Whether no image is to show anything in particular; waits for the device."""
        return bool((self.labels < 0).all())

    def spread(self, rows: int) -> Condition:
        """Return the condition of all model rows: itself, then null rows if there are two."""
        if rows == 1:
            return self
        text, valid = (t if t is None else torch.cat([t, t]) for t in (self.text, self.valid))
        return Condition(torch.cat([self.labels, torch.full_like(self.labels, -1)]), text, valid)

    def dropped(self, draw: Tensor, rate: float) -> Condition:
        """Return the condition without the labels where `draw` (B,), uniform, is below `rate`."""
        return replace(self, labels=self.labels.masked_fill(draw < rate, -1))

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on a device."""
        return self._mapped(lambda tensor: tensor.to(device))

    def each(self, number: int) -> Condition:
        """Return the condition with each row repeated, side by side."""
        return self._mapped(lambda tensor: tensor.repeat_interleave(number, dim=0))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self._mapped(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Condition:
        parts = (self.labels, self.text, self.valid)
        return Condition(*(part if part is None else change(part) for part in parts))  # type: ignore[arg-type]
