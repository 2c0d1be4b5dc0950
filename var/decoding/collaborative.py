"""Collaborative decoding (CoDe, arXiv 2411.17787): a large model opens, a small one closes.

The small one's prefill is nothing special: at the switch its cache has seen no group, so the loop
lets it read the whole prefix at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from var.cache.base import Cache, CacheKind
from var.decoding.base import Turn
from var.errors import UserError
from var.heads.base import Prediction
from var.models.base import Backbone
from var.random import Rng
from var.tokenizers.tokenizer import Canvas


class Collaborative:
    """Let one model decide the first groups, and another one, of the same tokenizer, the rest.

    No two caches are held at a time: the opener's is given back before the closer's grows, and the
    closer's before the next run.

    Args:
        opener: decides groups 0..switch-1.
        closer: decides the others; may be the opener itself.
        switch: number of groups that the opener decides, 1..K-1 of K.
        kind: of both caches; each model's own choice if none is given. Kept from run to run.
    """

    resumes = True

    def __init__(
        self, opener: Backbone, closer: Backbone, switch: int, kind: CacheKind | None = None
    ) -> None:
        self.opener, self.closer, self.switch, self.kind = opener, closer, switch, kind
        self._renew()

    @property
    def caches(self) -> Sequence[Cache]:
        """The opener's cache and the closer's, one of which is empty."""
        return (self._opening, self._closing)

    def begin(self, kind: CacheKind | None = None) -> None:
        """Forget the last run; go on with caches of another kind if one is given."""
        for cache in self.caches:
            cache.release()
        if kind not in (None, self.kind):
            self.kind = kind
            self._renew()

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the turn in which the model whose group it is reads what is decided.

        Raises:
            UserError: the switch leaves one of the models without a group.
        """
        groups = len(canvas.schedule)
        if not 1 <= self.switch < groups:
            raise UserError(
                f"switch={self.switch} leaves one of two models without work: an image of "
                f"{groups} groups can be handed over after 1..{groups - 1} of them"
            )
        if canvas.done < self.switch:
            return Turn(self.opener, self._opening, canvas)
        self._opening.release()
        return Turn(self.closer, self._closing, canvas)

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Draw the next group."""
        return [prediction.sample(rng)]

    def _renew(self) -> None:
        self._opening = self.opener.new_cache(self.kind, groups=self.switch)
        self._closing = self.closer.new_cache(self.kind)
