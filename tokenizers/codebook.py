"""The codebook: nearest code of a vector, vector of a code, mixture of codes.

Used by every discrete tokenizer; how codes are kept alive in training is `var.training.health`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of the distance matrix held at a time: bounds memory at 4096 codes to 64 MiB.
_ROWS = 1 << 12


class Codebook(nn.Module):
    """`size` code vectors of `channels` numbers.

    Args:
        size: number of codes V.
        channels: length of a code vector C.
        normalised: choose the code by direction only (published `using_znorm`).
    """

    no_decay = ("weight",)

    def __init__(self, *, size: int, channels: int, normalised: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, channels))
        self.normalised = normalised
        nn.init.uniform_(self.weight, -1 / size, 1 / size)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the id of the nearest code of each vector, (..., C) -> (...) int64."""
        codes = self.weight.detach()
        flat = vectors.reshape(-1, vectors.shape[-1])
        if self.normalised:
            codes, bias = F.normalize(codes, dim=-1), None
        else:
            bias = codes.square().sum(dim=-1).mul(-0.5)
        # |z - e|^2 orders codes as |e|^2 / 2 - z.e does: |z|^2 is the same for all of them.
        ids = [F.linear(rows, codes, bias).argmax(dim=-1) for rows in flat.split(_ROWS)]
        return torch.cat(ids).view(vectors.shape[:-1])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return code vectors (B, L, C) of ids (B, L) or of mixing weights (B, L, V)."""
        if tokens.is_floating_point():
            return tokens.to(self.weight.dtype) @ self.weight
        return F.embedding(tokens, self.weight)
