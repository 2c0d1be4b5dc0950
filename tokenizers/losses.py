"""What a reconstruction is judged by: terms behind one contract, summed by `Objective`.

A term is a module that takes (image, reconstruction), both (B, 3, H, W) around [0, 1], and returns
named losses. Terms may have parameters of their own (a discriminator), for the same optimiser. One
that is `relative` is also told what it is weighed against, see `Objective`; one that counts steps
has a method `stepped`. Terms of other kinds are in `perceptual` and `adversarial`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from var.errors import UserError


class Reconstruction(nn.Module):
    """Pixel distance, in the units of images in [-1, 1] (the published scale).

    Args:
        l1, l2: weights of the mean absolute and the mean squared error.
    """

    def __init__(self, *, l1: float = 0.0, l2: float = 1.0) -> None:
        super().__init__()
        self.l1, self.l2 = l1, l2

    def forward(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return the weighted errors."""
        error = 2 * (reconstruction - image)
        return {"l1": self.l1 * error.abs().mean(), "l2": self.l2 * error.square().mean()}


class Objective(nn.Module):
    """The sum of named terms.

    Args:
        terms: modules that take (image, reconstruction) and return named losses. Those with a true
            `relative` weigh themselves against the terms before them: they also take the sum of the
            losses so far, and the weight of the decoder's last layer to compare gradients at.

    Raises:
        UserError: the first term is relative.
    """

    def __init__(self, terms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        first = next(iter(terms), "")
        if first and getattr(terms[first], "relative", False):
            raise UserError(
                f"objective.{first} weighs itself against the terms before it: name another first, "
                f"or say objective.{first}.adaptive=false"
            )

    def forward(
        self, image: Tensor, reconstruction: Tensor, last: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of all terms by name; their sum is what is minimised.

        Args:
            image, reconstruction: (B, 3, H, W) around [0, 1].
            last: weight of the layer that the reconstruction comes out of; relative terms need it.
        """
        losses: dict[str, Tensor] = {}
        for term in self.terms.values():
            if getattr(term, "relative", False):
                before = torch.stack(list(losses.values())).sum()
                losses |= term(image, reconstruction, before, last)
            else:
                losses |= term(image, reconstruction)
        return losses

    def stepped(self, step: int) -> None:
        """Tell the terms that ask for it that optimiser step number `step` is done."""
        for term in self.terms.values():
            if stepped := getattr(term, "stepped", None):
                stepped(step)
