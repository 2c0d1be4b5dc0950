"""Speculative Jacobi decoding as its authors released it, where that is not exact (SJD, 5.2).

For comparison with their figures; `var.decoding.jacobi` is exact, and takes fewer turns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from var.cache.base import CacheKind
from var.decoding.guesses import Guess, Known, point, random
from var.decoding.jacobi import Jacobi
from var.decoding.verify import remainder
from var.errors import UserError
from var.heads.categorical import filtered
from var.models.base import Backbone
from var.sampling import Sampling


class PublishedJacobi(Jacobi):
    """What the released loop does otherwise.

    - The first tokens, and the last ones, are decided one a turn.
    - First guesses are any codes, as if nothing else could have been guessed.
    - A batch goes ahead as its slowest row does; what the others have decided is guessed again,
      under the law of the guess and not under that of the decision: such rows are biased.
    - Top-k and top-p are applied once more to what takes the place of a refuted guess: with top-p
      that is biased too.

    Args:
        model: who predicts; its tokens must be codes.
        window: groups that are predicted in a turn.
        first, last: windows begin to open when so many tokens behind the first one are decided, and
            close again (published `jacobi_loop_interval_l` and `_r`). No `last`: so many that the
            last window ends the image.
        top_k, top_p: of the second filter, see `Sampling`.
        test: `speculative` or `match`.
        kind: of the cache; the model's own choice if none is given.

    Raises:
        UserError: a setting is out of range; or see `Jacobi`.
    """

    def __init__(
        self,
        model: Backbone,
        window: int = 16,
        *,
        first: int = 1,
        last: int | None = None,
        top_k: int = 0,
        top_p: float = 0.0,
        test: str = "speculative",
        kind: CacheKind | None = None,
    ) -> None:
        super().__init__(model, window, test=test, together=True, kind=kind)
        self.guesser = certain
        for name, value in (("first", first), ("last", 0 if last is None else last)):
            if not isinstance(value, int):
                raise UserError(f"decoding.{name}={value}: use a whole number")
        try:
            self.again = Sampling(top_k=top_k, top_p=top_p)
        except (ValueError, TypeError) as error:
            raise UserError(f"decoding: {error}") from error
        self.first, self.last = first, last

    def _slots(self, before: int) -> int:
        # Of the last turn: so windows open one turn late, and close too.
        last = self.last
        if last is None:
            last = len(self.model.schedule) - self.window - 2
        if self.first + 1 <= before < last + 1:
            return min(self.window, last + 1 - before)
        return 1

    def _recorded(self, p: Tensor, kept: Tensor) -> Tensor:
        laws = None if self.state is None else self.state.laws
        return p if laws is None else torch.where(kept[..., None], laws, p)

    def _rest(self, p: Tensor, q: Tensor) -> Tensor:
        k, top_p = self.again.top_k, self.again.top_p
        assert isinstance(k, int) and isinstance(top_p, float | int)
        return filtered(remainder(p, q).log(), k, top_p).softmax(dim=-1)


def certain(known: Known, cells: Tensor, uniform: Tensor, vocabulary: int) -> Guess:
    """Guess any code, and take it for the only one that could have been guessed."""
    ids, _, there = random(known, cells, uniform, vocabulary)
    return ids, point(ids, vocabulary), there
