"""Candidates on their way: drawn together up to a group, shown to a scorer, and fewer of them.

A stage hands on label after label what it leaves of each, and the next one fills its batches with
that. So no batch is larger, or, but for the last, smaller than was asked for, and all that is held
is one or two of them a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from var.cache.base import CacheKind
from var.condition import Condition
from var.decoding.base import Decoding
from var.decoding.counted import Metered
from var.decoding.loop import decide
from var.errors import UserError
from var.lots import Lot, leaders, merged, ranked
from var.pipeline import Pipeline
from var.random import Rng
from var.sampling import Sampling
from var.scorers import Scorer
from var.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Best:
    """The best candidates of B labels, best first; of equals the earlier.

    Attributes:
        images: (B, T, 3, H, W) float32 in [0, 1].
        scores: (B, T) float64.
        index: (B, T) int64 which of the label's candidates they are.
        seeds: (B, T) int64 their random streams, each of which makes its image again.
        cost: (B,) float64 positions that models read for all candidates, guidance and what is read
            again included, in those of one image that one model decides group by group. With a
            sequential decoding it is N if nothing is dropped; others read more than once, too.
    """

    images: Tensor
    scores: Tensor
    index: Tensor
    seeds: Tensor
    cost: Tensor

    def __len__(self) -> int:
        return len(self.cost)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return what was found of all labels of several batches."""
        names = [each.name for each in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class Drawer:
    """Draws candidates in stages, after each of which some are dropped.

    Args:
        pipe: who draws.
        tokenizer: the pipeline's, or an edit's around it.
        scorer: who judges.
        stages: after how many groups how many of a label's candidates stay, from none and all on.
        condition: of each label.
        seeds: random stream of each label's first candidate.
        sampling: how tokens are drawn.
        decoding: who predicts and what is kept.
        cache: kind of the decoding's caches; None: its own choice.

    Raises:
        UserError: images that stop in the middle would not go on as they would have.
    """

    def __init__(
        self,
        pipe: Pipeline,
        tokenizer: Tokenizer,
        scorer: Scorer,
        stages: Sequence[tuple[int, int]],
        condition: Condition,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        decoding: Decoding,
        cache: CacheKind | None,
    ) -> None:
        self.pipe, self.tokenizer, self.scorer, self.stages = pipe, tokenizer, scorer, stages
        self.condition, self.seeds = condition, torch.tensor(seeds, dtype=torch.int64)
        self.sampling, self.cache = sampling, cache
        self.decoding = Metered(decoding, sampling)
        self.read = torch.zeros(len(seeds), dtype=torch.float64)  # positions, for each label
        if len(stages) > 2:
            decoding.begin(cache)
            check_beginnings(decoding)

    def best(self, done: int, size: int, bar: tqdm[Any]) -> Iterator[Best]:
        """Yield the best candidates of label `done` and those after it, of some at a time.

        Args:
            done: number of labels to leave out.
            size: candidates at a time.
            bar: is moved by each group.

        Raises:
            UserError: scores are not one finite number an image.
        """
        self.read[done:] = 0
        lots = self._begun(done, size)
        for (_, number), (groups, left) in pairwise(self.stages):
            lots = self._stage(merged(lots, size), done, number, groups, left, bar)
        return map(self._told, lots)

    def _begun(self, done: int, size: int) -> Iterator[Lot]:
        """Yield all candidates of label `done` and those after it, of whom nothing is decided."""
        number = self.stages[0][1]
        for each in torch.arange(done * number, len(self.seeds) * number).split(size):
            label, index = each // number, each % number
            streams = (self.seeds[label] + index).tolist()
            yield Lot(label, index, Rng(streams, self.pipe.device))

    def _stage(
        self,
        lots: Iterable[Lot],
        first: int,
        number: int,
        groups: int,
        left: int,
        bar: tqdm[Any],
    ) -> Iterator[Lot]:
        """Yield, of whole labels, which of their candidates stay once so many groups are decided.

        Args:
            lots: `number` candidates of each label, beginning with label `first`.
            groups: that are decided then.
            left: candidates that stay.
            bar: is moved by each group.
        """
        held: Lot | None = None
        seen = 0
        for lot in lots:
            scored = self._scored(self._drawn(lot, groups, bar))
            held, seen = held.joined(scored) if held else scored, seen + len(lot)
            assert held.scores is not None
            held = held.rows(leaders(held.label, held.scores, left))
            whole, held = held.split(int((held.label < first + seen // number).sum()))
            if whole:
                yield whole

    def _drawn(self, lot: Lot, groups: int, bar: tqdm[Any]) -> Lot:
        """Return candidates once so many groups are decided."""
        canvas, before = lot.canvas, self.decoding.positions
        for now in decide(
            self.tokenizer,
            self.pipe.schedule,
            self.condition[lot.label],
            self.decoding,
            self.sampling,
            lot.rng,
            canvas=canvas,
            cache=self.cache,
        ):
            bar.update(len(lot) * (now.done - (canvas.done if canvas else 0)))
            canvas = now
            if canvas.done >= groups:
                break
        each = lot.label.bincount(minlength=len(self.read))
        self.read += each * (self.decoding.positions - before)
        return replace(lot, canvas=canvas)

    @torch.inference_mode()
    def _scored(self, lot: Lot) -> Lot:
        """Return candidates with their scores; with images, not canvases, if they are finished.

        Raises:
            UserError: scores are not one finite number an image.
        """
        assert lot.canvas is not None
        images = self.tokenizer.decode(lot.canvas).float()
        scores = self.scorer(images, self.condition[lot.label])
        if not isinstance(scores, Tensor) or scores.shape != (len(lot),):
            what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(f"a scorer must return ({len(lot)},), one score an image, not {what}")
        scores = scores.cpu().double()
        if not scores.isfinite().all():
            raise UserError(
                f"the scorer returned {scores[~scores.isfinite()][0]:.0f} after {lot.canvas.done} "
                f"of {len(lot.canvas.schedule)} groups: only finite scores can be ranked"
            )
        if lot.canvas.done < len(lot.canvas.schedule):
            return replace(lot, scores=scores)
        return replace(lot, scores=scores, canvas=None, images=images)

    def _told(self, lot: Lot) -> Best:
        """Return the best of whole labels, T finished candidates of each."""
        assert lot.scores is not None and lot.images is not None
        order = ranked(lot.label, lot.scores).view(-1, self.stages[-1][1])
        label, index = lot.label[order], lot.index[order]
        seeds, cost = self.seeds[label] + index, self.read[label[:, 0]] / self._positions()
        return Best(lot.images[order], lot.scores[order], index, seeds, cost)

    def _positions(self) -> int:
        """Return what one model reads for an image that is decided group by group."""
        schedule = self.pipe.schedule
        spans = [schedule[k : k + 1] for k in range(len(schedule))]
        return sum(len(span) * self.sampling.guide_over(span).rows for span in spans)


def check_beginnings(decoding: Decoding) -> None:
    """Check that images that a decoding takes up in the middle become what they would have been.

    Raises:
        UserError: they do not.
    """
    if not decoding.resumes:
        raise UserError(
            "prune stops drawing and begins anew, and this decoding would lose its guesses: "
            "use decoding=sequential, or do not prune"
        )
    if any(not cache.rewinds and not cache.recurrent for cache in decoding.caches):
        raise UserError(
            "prune has survivors read what cache=scale has dropped, and their images would be "
            "others: use cache=static or cache=dense, or do not prune"
        )
