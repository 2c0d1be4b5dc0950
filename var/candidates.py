"""Candidates on their way: drawn together up to a group, shown to a scorer, and fewer of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from var.cache.base import CacheKind
from var.condition import Condition
from var.decoding.base import Decoding
from var.decoding.counted import Metered
from var.decoding.jacobi import Jacobi
from var.decoding.loop import decide
from var.devices import is_out_of_memory
from var.errors import UserError
from var.pipeline import Pipeline
from var.random import Rng
from var.sampling import Sampling
from var.scorers import Scorer
from var.tokenizers.tokenizer import Canvas


@dataclass(frozen=True)
class Lot:
    """Candidates that are drawn together.

    Attributes:
        condition: what they shall show.
        rng: their streams.
        canvas: what is decided of them; None: nothing.
    """

    condition: Condition
    rng: Rng
    canvas: Canvas | None = None

    def __len__(self) -> int:
        return len(self.rng)

    def rows(self, index: Tensor) -> Lot:
        """Return some of them, those of `index` (n,) int64."""
        canvas = None if self.canvas is None else self.canvas.rows(index)
        return Lot(self.condition[index], self.rng.rows(index.tolist()), canvas)


def survivors(lots: Iterable[Lot], rows: Tensor) -> Iterator[Lot]:
    """Yield what stays of lots if those `rows` (n,) int64 of all their candidates do."""
    start = 0
    for lot in lots:
        mine = rows[(rows >= start) & (rows < start + len(lot))] - start
        if len(mine):
            yield lot.rows(mine)
        start += len(lot)


def ranked(scores: Tensor, count: int) -> Tensor:
    """Return where the best of each row of scores (B, n) are, (B, count); of equals the earlier."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


@dataclass(frozen=True)
class Best:
    """The best candidates of B labels, best first; of equals the earlier.

    Attributes:
        images: (B, T, 3, H, W) float32 in [0, 1].
        scores: (B, T) float64.
        index: (B, T) int64 which of the label's candidates they are.
        seeds: (B, T) int64 their random streams, each of which makes its image again.
        cost: positions that models read for a label, candidates and guidance included, in those of
            a single image decided scale by scale: N if nothing is dropped.
    """

    images: Tensor
    scores: Tensor
    index: Tensor
    seeds: Tensor
    cost: float

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return what was found of all labels of several batches."""
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.index for part in parts]),
            torch.cat([part.seeds for part in parts]),
            sum(part.cost * len(part.scores) for part in parts)
            / sum(len(part.scores) for part in parts),
        )


class Drawer:
    """Draws candidates in stages, between which some are dropped.

    Args:
        pipe: who draws.
        scorer: who judges.
        stages: after how many groups how many of a label's candidates stay, from none and all on.
        sampling: how tokens are drawn.
        decoding: who predicts and what is kept.
        cache: kind of the decoding's caches; None: its own choice.

    Raises:
        UserError: images that stop in the middle would not go on as they would have.
    """

    def __init__(
        self,
        pipe: Pipeline,
        scorer: Scorer,
        stages: Sequence[tuple[int, int]],
        sampling: Sampling,
        decoding: Decoding,
        cache: CacheKind | None,
    ) -> None:
        self.pipe, self.scorer, self.stages = pipe, scorer, stages
        self.sampling, self.cache = sampling, cache
        self.decoding = Metered(decoding, sampling)
        self.read = 0  # positions, of all candidates of an attempt and their guidance
        if len(stages) > 2:
            decoding.begin(cache)
            check_beginnings(decoding)

    def best(
        self, condition: Condition, seeds: Sequence[int], size: int, bar: tqdm[Any]
    ) -> Best | None:
        """Return the best candidates of some labels; None: there is no memory for it.

        Args:
            condition: of each label.
            seeds: random stream of its first candidate.
            size: candidates at a time.
            bar: is moved by each group.

        Raises:
            UserError: scores are not one finite number an image.
        """
        try:
            return self._best(condition, seeds, size, bar)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            for cache in self.decoding.caches:
                cache.release()
            return None  # and let go of everything that the failure held

    def _best(self, condition: Condition, seeds: Sequence[int], size: int, bar: tqdm[Any]) -> Best:
        (_, number), *stages, (finished, top) = self.stages
        labels, every, self.read = len(seeds), condition.each(number), 0
        streams = [first + j for first in seeds for j in range(number)]
        parts = [slice(start, start + size) for start in range(0, len(every), size)]
        lots = [Lot(every[part], Rng(streams[part], self.pipe.device)) for part in parts]
        index, row = torch.arange(number).expand(labels, -1), torch.arange(labels)[:, None]
        for groups, left in stages:
            lots, _, scores = self._stage(lots, groups, bar)
            scores = scores.view(labels, -1)
            order = ranked(scores, left).sort(dim=1).values  # in turn, for the next ranks of equals
            lots = list(survivors(lots, (order + row * scores.shape[1]).flatten()))
            index = index.gather(1, order)
        _, images, scores = self._stage(lots, finished, bar)
        images, scores = (each.unflatten(0, (labels, -1)) for each in (images, scores))
        order = ranked(scores, top)
        index, cost = index.gather(1, order), self.read / (labels * self._positions())
        seed = torch.tensor(seeds)[:, None] + index
        return Best(images[row, order], scores.gather(1, order), index, seed, cost)

    def _stage(
        self, lots: Iterable[Lot], groups: int, bar: tqdm[Any]
    ) -> tuple[list[Lot], Tensor, Tensor]:
        """Return lots once so many groups are decided, and all their images and scores."""
        lots = [self._drawn(lot, groups, bar) for lot in lots]
        images, scores = zip(*map(self._judged, lots), strict=True)
        return lots, torch.cat(images), torch.cat(scores)

    def _drawn(self, lot: Lot, groups: int, bar: tqdm[Any]) -> Lot:
        """Return candidates once so many groups are decided."""
        pipe, canvas, before = self.pipe, lot.canvas, self.decoding.positions
        for now in decide(
            pipe.tokenizer,
            pipe.schedule,
            lot.condition,
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
        self.read += (self.decoding.positions - before) * len(lot)
        return replace(lot, canvas=canvas)

    @torch.inference_mode()
    def _judged(self, lot: Lot) -> tuple[Tensor, Tensor]:
        """Return images (b, 3, H, W) of candidates, and their scores (b,) float64 on the CPU.

        Raises:
            UserError: scores are not one finite number an image.
        """
        assert lot.canvas is not None
        images = self.pipe.decode(lot.canvas)
        scores = self.scorer(images, lot.condition.labels)
        if not isinstance(scores, Tensor) or scores.shape != (len(lot),):
            what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(f"a scorer must return ({len(lot)},), one score an image, not {what}")
        scores = scores.cpu().double()
        if not scores.isfinite().all():
            raise UserError(
                f"the scorer returned {scores[~scores.isfinite()][0]:.0f} after {lot.canvas.done} "
                f"of {len(lot.canvas.schedule)} groups: only finite scores can be ranked"
            )
        return images, scores

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
    if isinstance(decoding, Jacobi):
        raise UserError(
            "prune stops a decoding and begins anew, and decoding=jacobi would lose its guesses: "
            "use decoding=sequential, or do not prune"
        )
    if any(not cache.rewinds and not cache.recurrent for cache in decoding.caches):
        raise UserError(
            "prune has survivors read what cache=scale has dropped, and their images would be "
            "others: use cache=static or cache=dense, or do not prune"
        )
