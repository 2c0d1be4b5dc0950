"""Speculative Jacobi decoding (SJD, arXiv 2410.01699): several groups a turn, the same images.

A turn reads a window of guesses in one pass. What the pass predicts puts the guesses to the test
(`var.decoding.verify`); those before the first refuted one are decided, and so is what takes its
place. For what lies behind it the predictions, though made on guesses, are what is guessed next.

The rows of a batch go ahead each at its own pace: what a row has decided and others have not stands
among the guesses, and is put to the test no more. So an image does not depend on those beside it.

Letters: B images, L positions of a turn, V vocabulary. Positions are those of all groups laid end
to end; a group of several positions is settled as a whole, and is refuted if one of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from var.cache.base import Cache, CacheKind
from var.decoding import verify
from var.decoding.base import Turn
from var.decoding.guesses import GUESSERS, Known, guessed, likeliest, sampled
from var.decoding.jacobi_state import Look, State, by_group, picked, shifted, widest
from var.errors import UserError
from var.heads.base import Prediction
from var.heads.categorical import CategoricalPrediction, SmoothPrediction
from var.models.base import Backbone
from var.random import Rng
from var.schedule import Span
from var.tokenizers.tokenizer import Canvas


class Jacobi:
    """Let one model decide several groups a turn, by putting guesses to the test.

    Args:
        model: who predicts; its tokens must be codes.
        window: groups of a row that are predicted in a turn, of which all but the first are
            predicted on guesses; 1 decides group after group.
        guess: how the first guess of a token is made, see `var.decoding.guesses`.
        test: `speculative`, or `match`: a guess stays if the token drawn in its place is the same
            (plain Jacobi decoding, exact too, but slower). Without streams all guesses are matched.
        together: let no row go ahead of the slowest one. Turns are shorter, and a few more; images
            depend on those beside them.
        kind: of the cache; the model's own choice if none is given. Kept from run to run.

    Raises:
        UserError: a setting is out of range, the model's tokens are no codes, or its cache cannot
            forget single groups.
    """

    resumes = False  # guesses are lost

    def __init__(
        self,
        model: Backbone,
        window: int = 16,
        guess: str = "random",
        test: str = "speculative",
        together: bool = False,
        kind: CacheKind | None = None,
    ) -> None:
        if not isinstance(window, int) or window < 1:
            raise UserError(f"decoding.window={window}: use a whole number of at least 1")
        if guess not in GUESSERS:
            raise UserError(f"decoding.guess={guess}: there are {', '.join(GUESSERS)}")
        if test not in ("speculative", "match"):
            raise UserError(f"decoding.test={test}: use speculative or match")
        vocabulary = getattr(model.head, "vocabulary", None)
        if vocabulary is None:
            raise UserError("decoding=jacobi tests guesses of codes: this model's tokens are none")
        self.model, self.window, self.kind, self.vocabulary = model, window, kind, vocabulary
        self.guess, self.guesser = guess, GUESSERS[guess]
        self.matches, self.together = test == "match", together
        self.cache = self._made(kind)
        self.state: State | None = None

    @property
    def caches(self) -> Sequence[Cache]:
        """The model's cache."""
        return (self.cache,)

    def begin(self, kind: CacheKind | None = None) -> None:
        """Forget the last run; go on with a cache of another kind if one is given.

        Raises:
            UserError: the cache cannot forget single groups.
        """
        if kind not in (None, self.kind):
            self.kind, self.cache = kind, self._made(kind)
        self.cache.rewind(0)
        self.state = None

    def propose(self, canvas: Canvas, rng: Rng | None) -> Turn:
        """Return the turn in which the model reads what is decided, and guesses after it.

        Raises:
            UserError: guesses are made of neighbours, and the groups have none.
        """
        if self.state is None:
            self.state = self._opened(canvas, rng)
        span, start = self.state.span, self.state.schedule.starts[canvas.done]
        guesses = self.state.tokens[:, start : start + len(span) - span.sizes[-1]]
        return Turn(self.model, self.cache, canvas.write(*guesses.split(span.sizes[:-1], dim=1)))

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        """Return the tokens of the groups that all rows have now decided, one or more.

        Raises:
            UserError: the prediction is none of single codes.
        """
        assert self.state is not None
        state, look = self.state, self._looked(prediction, rng)
        span, guess = state.span, state.tokens[:, state.span.positions]
        group = state.levels[span.positions]
        slot = group - state.own[:, None]
        tested = (slot >= 0) & (slot < state.slots - 1) & (group < span.stop - 1)
        if look.uniform is None or state.laws is None:
            stays = guess == look.drawn
        else:
            stays = verify.stays(guess, look.p, state.laws, look.numbers(1))
        good = (slot < 0) | (tested & stays)
        edge = state.done + verify.run_length(by_group(good, span))
        tokens = torch.where(group > edge[:, None], look.drawn, guess)
        tokens = self._mended(tokens, edge, good, tested, look)
        kept = (slot >= 0) & (group < edge[:, None])
        return self._advance(tokens, edge, look._replace(p=self._recorded(look.p, kept)))

    def _looked(self, prediction: Prediction, rng: Rng | None) -> Look:
        state = self.state
        assert state is not None
        if not isinstance(prediction, CategoricalPrediction) or isinstance(
            prediction, SmoothPrediction
        ):
            raise UserError("decoding=jacobi tests single codes: leave sampling.smooth out")
        if rng is None:
            return Look(prediction.logits, prediction.logits.argmax(dim=-1))
        uniform, p = self._uniform(rng, state), prediction.probs
        columns = state.columns(state.span)
        drawn = verify.draw(p, uniform[0].gather(1, columns))
        return Look(p, drawn, uniform, columns)

    def _mended(
        self, tokens: Tensor, edge: Tensor, good: Tensor, tested: Tensor, look: Look
    ) -> Tensor:
        """Return tokens (B, L) with those of each row's group `edge` replaced that are not good."""
        state = self.state
        assert state is not None
        span, start = state.span, state.span.positions.start
        first, last = state.starts[edge], state.starts[(edge + 1).clamp(max=len(span.schedule))]
        where = first[:, None] + torch.arange(max(span.sizes), device=edge.device)
        inside = (where < last[:, None]) & (edge < span.stop)[:, None]
        where = torch.where(inside, where - start, 0)  # elsewhere of no consequence
        instead = look.drawn.gather(1, where)
        if look.uniform is not None and state.laws is not None:
            rest = self._rest(picked(look.p, where), picked(state.laws, where))
            z = verify.draw(rest, look.numbers(3).gather(1, where))
            instead = torch.where(tested.gather(1, where), z, instead)
        bad, spare = inside & ~good.gather(1, where), tokens.shape[1]
        room = torch.cat([tokens, tokens[:, :1]], dim=1)
        return room.scatter_(1, torch.where(bad, where, spare), instead)[:, :spare]

    def _advance(self, tokens: Tensor, edge: Tensor, look: Look) -> list[Tensor]:
        """Move on behind each row's `edge`; return what all rows have decided on the way."""
        state = self.state
        assert state is not None
        old, slots, span, last = state.done, state.slots, state.span, len(state.schedule)
        state.tokens[:, span.positions] = tokens
        known = state.starts[(state.own + slots).clamp(max=span.stop)]
        own = torch.maximum(state.own, (edge + 1).clamp(max=last))  # some may be done already
        if self.together:
            own = own.min().expand_as(own)
        known = torch.maximum(known, state.starts[own])
        # The one moment of a turn in which the host waits: it has to know how far all have come.
        done, most = torch.stack([own.min(), (own * (own < last)).max()]).tolist()
        state.done, state.own, state.ahead = done, own, max(0, most - done)
        state.slots = self._slots(old)
        if done < last:
            self._guess(known, min(old + slots, span.stop), look, span)
        decided = state.schedule[old:done]
        return list(state.tokens[:, decided.positions].split(decided.sizes, dim=1))

    def _guess(self, known: Tensor, least: int, look: Look, read: Span | None) -> None:
        """Guess what is still unknown of the window.

        Args:
            known: (B,) positions decided or guessed.
            least: groups of which that is known for all rows.
            look: what the last turn has shown.
            read: the groups that it read; None: it is the first.
        """
        state = self.state
        assert state is not None
        here, size = state.span.positions, look.p.shape[-1]
        start = min(max(here.start, state.schedule.starts[least]), here.stop)
        fresh = slice(start, here.stop)
        cells = torch.arange(fresh.start, fresh.stop, device=known.device).expand(len(known), -1)
        law = None
        if read is not None:
            behind = (known - 1 - read.positions.start).clamp(max=look.p.shape[1] - 1)
            law = picked(look.p, behind[:, None])
        facts = Known(state.tokens, known, law, state.grid)
        numbers = cells * 0.0
        if look.uniform is not None:
            columns = state.columns(state.span)
            numbers = look.uniform[2].gather(1, columns[:, fresh.start - here.start :])
        guesser = self.guesser
        if look.uniform is None and guesser is sampled:  # nothing is drawn
            guesser = likeliest
        ids, firsts = guessed(guesser, facts, cells, numbers, size)
        unknown = cells >= known[:, None]
        state.tokens[:, fresh] = torch.where(unknown, ids, state.tokens[:, fresh])
        if look.uniform is None or self.matches:  # nobody asks what guesses were drawn from
            state.laws = None
        elif read is None:
            state.laws = firsts
        else:
            state.laws = shifted(look.p, read.positions, here)
            tail = state.laws[:, fresh.start - here.start :]
            tail.copy_(torch.where(unknown[..., None], firsts, tail))

    def _opened(self, canvas: Canvas, rng: Rng | None) -> State:
        """Return the state of a run that begins with this canvas, its first window guessed."""
        schedule, shown = (
            canvas.schedule,
            canvas.read(canvas.schedule[canvas.done : canvas.done + 1]),
        )
        batch, device = len(shown), shown.device
        if self.guess != "random" and not schedule.is_raster:
            raise UserError(
                f"decoding.guess={self.guess} looks at neighbours, which only the cells of a "
                "raster have: use decoding.guess=random"
            )
        self.state = state = State(
            schedule,
            levels=schedule[:].levels(device),
            starts=torch.tensor(schedule.starts, device=device),
            done=canvas.done,
            own=torch.full((batch,), canvas.done, device=device),
            ahead=0,
            slots=self._slots(-1),
            tokens=torch.zeros(batch, schedule.starts[-1], dtype=torch.int64, device=device),
            places=widest(schedule, self.window),
        )
        if (ids := getattr(canvas, "ids", None)) is not None:
            state.tokens[:, : ids.shape[1]] = ids
        nothing = torch.zeros(batch, 0, self.vocabulary, device=device)
        uniform = None if rng is None else self._uniform(rng, state)
        look = Look(nothing, nothing[..., 0].long(), uniform)
        self._guess(state.starts[state.own], canvas.done, look, None)
        return state

    def _recorded(self, p: Tensor, kept: Tensor) -> Tensor:
        """Return the laws (B, L, V) of the tokens that are guesses from now on.

        Args:
            p: predictions of this turn.
            kept: (B, L) guesses that have passed the test in it.
        """
        return p

    def _slots(self, before: int) -> int:
        """Return the groups of the next window, given how many were decided before this turn."""
        return self.window

    def _rest(self, p: Tensor, q: Tensor) -> Tensor:
        """Return the law (..., V) of what takes the place of a refuted guess."""
        return verify.remainder(p, q)

    def _uniform(self, rng: Rng, state: State) -> Tensor:
        """Return all that a turn needs of chance, (4, B, C) in [0, 1).

        That is, for each place in a row's window: what is drawn with from predictions, what tests
        the guess, what first guesses are made with, and what takes the place of a refuted one. As
        many in every turn: a row's numbers do not depend on the rows beside it.
        """
        return rng.uniform(4, state.places).movedim(1, 0).to(state.own.device)

    def _made(self, kind: CacheKind | None) -> Cache:
        cache = self.model.new_cache(kind)
        if cache.recurrent:
            raise UserError(
                "Jacobi decoding takes back guesses, which a model that remembers a state, and no "
                "keys, cannot: use decoding=sequential"
            )
        if not cache.rewinds:
            raise UserError(
                "decoding=jacobi takes back guesses, which this cache cannot: use cache=static or "
                "cache=dense"
            )
        return cache
