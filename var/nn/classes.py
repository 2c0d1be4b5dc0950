"""The embedding of classes, the null class included."""

from __future__ import annotations

from torch import Tensor, nn


class Classes(nn.Embedding):
    """Class ids to vectors; -1 and the number of classes both stand for no class.

    Args:
        count: number of classes; the null class comes on top.
        width: of a vector.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count + 1, width)
        self.null = count

    def forward(self, input: Tensor) -> Tensor:
        """Return the vectors (R, D) of labels (R,).

        Raises:
            ValueError: a label is out of range. Seen on the CPU only: on other devices a look at
                the values would make the host wait.
        """
        if input.device.type == "cpu" and not ((input >= -1) & (input <= self.null)).all():
            raise ValueError(f"labels must lie in -1..{self.null}, got {input.tolist()}")
        return super().forward(input.where(input >= 0, self.null))
