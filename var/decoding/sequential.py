"""Sequential decoding: one model reads, one group is decided per turn."""

from __future__ import annotations

from torch import Tensor

from var.cache.base import Cache
from var.decoding.base import Turn
from var.heads.base import Prediction
from var.models.base import Backbone
from var.random import Rng
from var.tokenizers.tokenizer import Canvas


class Sequential:
    """Decide group after group, each drawn from the prediction of one model.

    Args:
        model: who predicts.
        cache: its memory; the model's own choice if none is given. Kept from run to run.
    """

    def __init__(self, model: Backbone, cache: Cache | None = None) -> None:
        self.model = model
        self.cache = cache if cache is not None else model.new_cache()

    def begin(self) -> None:
        """Forget the last run."""
        self.cache.rewind(0)

    def propose(self, canvas: Canvas) -> Turn:
        """Return the turn in which the model reads what is decided."""
        return Turn(self.model, self.cache, canvas)

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Draw the next group."""
        return [prediction.sample(rng)]
