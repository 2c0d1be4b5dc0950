"""The embedding of classes, the null class included."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classes(nn.Embedding):
    """Class ids to vectors; -1 and the number of classes both stand for no class.

    Args:
        count: number of classes; the null class comes on top.
        width: of a vector.
        null: whether there is a null class.
    """

    def __init__(self, count: int, width: int, *, null: bool = True) -> None:
        super().__init__(count + null, width)
        self.null = count if null else count - 1
        self.least = -1 if null else 0

    def forward(self, input: Tensor) -> Tensor:
        """Return the vectors (R, D) of labels (R,).

        Raises:
            ValueError: a label is out of range. Seen on the CPU only: on other devices a look at
                the values would make the host wait, and an exported program has no such branch.
        """
        least, most = self.least, self.null
        looked_at = input.device.type == "cpu" and not torch.compiler.is_exporting()
        if looked_at and not ((input >= least) & (input <= most)).all():
            raise ValueError(f"labels must lie in {least}..{most}, got {input.tolist()}")
        return super().forward(input.where(input >= 0, self.null))
