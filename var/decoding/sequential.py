"""Sequential decoding: one model reads, one group is decided per turn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from var.cache.base import Cache, CacheKind
from var.decoding.base import Turn
from var.heads.base import Prediction
from var.models.base import Backbone
from var.random import Rng
from var.tokenizers.tokenizer import Canvas


class Sequential:
    """Decide group after group, each drawn from the prediction of one model.

    Args:
        model: who predicts.
        kind: of its cache; the model's own choice if none is given. Kept from run to run.
    """

    resumes = True

    def __init__(self, model: Backbone, kind: CacheKind | None = None) -> None:
        self.model, self.kind = model, kind
        self.cache = model.new_cache(kind)

    @property
    def caches(self) -> Sequence[Cache]:
        """The model's cache."""
        return (self.cache,)

    def begin(self, kind: CacheKind | None = None) -> None:
        """Forget the last run; go on with a cache of another kind if one is given."""
        if kind not in (None, self.kind):
            self.kind, self.cache = kind, self.model.new_cache(kind)
        self.cache.rewind(0)

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the turn in which the model reads what is decided."""
        return Turn(self.model, self.cache, canvas)

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Draw the next group."""
        return [prediction.sample(rng)]
