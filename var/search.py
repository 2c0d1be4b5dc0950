"""Best of several: of a label's candidates a scorer keeps the best (VAR's rejection sampling).

Candidates of which little can be expected are dropped on the way, once some of their groups are
decided: their canvas decodes to an image as any other, which is scored. To judge finished images
(ORM) and to give up some before (PARM) is Image-Generation-CoT's (arXiv 2501.13926), whose reward
model, trained for it, says itself when an image can be judged, and which to give up. Here any
scorer ranks, after groups that are chosen beforehand, and so many stay.

Survivors go on with their canvas and their random streams; what remembers the groups before is not
taken apart, but made anew, in one pass over them, as the second model of a collaborative decoding
does it. Letters: B labels, N candidates of each, n of them left, T delivered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Self, Unpack

from var import choices
from var.candidates import Best, Drawer
from var.condition import Condition
from var.drawing import fitting
from var.errors import UserError
from var.labels import Labels
from var.metrics.networks import Network
from var.pipeline import Pipeline
from var.sampling import Sampling, Settings
from var.scorers import ClassLogProbability, Scorer


@dataclass(frozen=True)
class Search:
    """How many candidates a label has, and which of them stay.

    Attributes:
        scorer: tells what is best, of images that are not finished too if there is something to
            prune.
        number: N, candidates of each label.
        prune: by number of groups decided, what stays of a label's candidates then: a share of
            those left, a float in 0..1, rounded up; or so many, an int. Numbers of groups may be
            strings, as JSON has them.
        top: T, how many are delivered.

    Raises:
        UserError: a number is out of range, or `prune` is none of that.
    """

    scorer: Scorer
    number: int
    prune: Mapping[int, float] = field(default_factory=dict)
    top: int = 1

    def __post_init__(self) -> None:
        for name, value in (("number of candidates", self.number), ("top", self.top)):
            if type(value) is not int or value < 1:
                raise UserError(f"{name} must be a whole number of 1 or more, got {value}")
        object.__setattr__(self, "prune", _by_group(self.prune))
        for k, kept in self.prune.items():
            if not (type(kept) is float and 0 < kept <= 1 or type(kept) is int and kept >= 1):
                raise UserError(
                    f"prune={{{k}: {kept}}}: keep a share, a decimal number above 0.0 and up to "
                    "1.0, or a whole number of candidates"
                )

    def stages(self, groups: int) -> list[tuple[int, int]]:
        """Return after how many of so many groups how many candidates stay, from none and all on.

        Raises:
            UserError: something is to be dropped when there is nothing to be seen, or nothing left
                to be saved; or more are to be kept than there are.
        """
        if odd := [k for k in self.prune if type(k) is not int or not 1 <= k < groups]:
            raise UserError(
                f"prune={dict(self.prune)}: an image of {groups} groups can be judged after "
                f"1..{groups - 1} of them, not after {odd[0]}"
            )
        stages, left = [(0, self.number)], self.number
        for k, kept in sorted(self.prune.items()):
            # Exactly: a tenth of thirty are three, in decimal numbers.
            count = kept if isinstance(kept, int) else ceil(Fraction(str(kept)) * left)
            if count > left:
                raise UserError(f"prune={{{k}: {count}}}: only {left} candidates are left by then")
            if count < left:
                stages.append((k, count))
            left = count
        if left < self.top:
            raise UserError(f"top={self.top} cannot be delivered: {left} candidates are left")
        return [*stages, (groups, self.top)]

    def batches(
        self,
        pipe: Pipeline,
        ids: Sequence[int] | Condition,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        decoding: choices.Choice = None,
        cache: choices.CacheChoice = None,
        edit: choices.EditChoice = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Iterator[Best]:
        """Yield the best of some labels after the other.

        Args:
            pipe: who draws.
            ids: class of each label, -1 for none; or a condition.
            seeds: random stream of each label's first candidate; the others have those after it.
            sampling, decoding, cache, edit, progress: see `Pipeline`.
            batch_size: candidates at a time; halved as often as needed when memory runs out.

        Raises:
            UserError: see `best_of`.
        """
        stages, condition = self.stages(len(pipe.schedule)), pipe.condition(ids)
        if check := getattr(self.scorer, "check", None):
            check(pipe, condition)
        drawer = Drawer(
            pipe,
            choices.edited(pipe, edit),
            self.scorer,
            stages,
            condition,
            seeds,
            sampling=sampling,
            decoding=choices.decoding(pipe, decoding),
            cache=choices.cache(pipe, cache),
        )
        return fitting(
            drawer.best,
            seeds,
            drawer.decoding,
            pipe.device,
            groups=sum((k - j) * n for (j, n), (k, _) in pairwise(stages)),
            number=self.number,
            batch_size=batch_size,
            progress=progress,
        )

    @classmethod
    def best_of(
        cls, *, number: int, features: Network, prune: Mapping[int, float] | None = None
    ) -> Self:
        """Return the search for images that a classifier takes for what they shall show.

        Args:
            features: the classifier, see `ClassLogProbability`.
            number, prune: see `Search`.
        """
        return cls(ClassLogProbability(features), number, {} if prune is None else prune)


def best_of(
    pipe: Pipeline,
    labels: Labels | Condition = None,
    *,
    number: int,
    scorer: Scorer,
    prune: Mapping[int, float] | None = None,
    top: int = 1,
    seed: int = 0,
    decoding: choices.Choice = None,
    cache: choices.CacheChoice = None,
    edit: choices.EditChoice = None,
    batch_size: int = 32,
    progress: bool = False,
    **settings: Unpack[Settings],
) -> Best:
    """Return the best of each label's candidates.

    Candidate j of label i is drawn from the random stream `seed + i * number + j`: candidates are
    the images of `pipe(labels, number=number, seed=seed)`, and so is what is delivered.

    Args:
        pipe: who draws.
        labels: classes as ids or names; None and -1 stand for none. Or a condition.
        number, scorer, prune, top: see `Search`.
        seed, decoding, cache, edit, progress, settings: see `Pipeline.__call__`.
        batch_size: candidates at a time; halved as often as needed when memory runs out.

    Raises:
        UserError: a number is out of range; the scorer refuses, or scores are not one finite number
            an image; something is to be pruned and the decoding, or its cache, cannot begin in the
            middle; no memory.
    """
    condition = pipe.condition(labels)
    if not len(condition):
        raise UserError("there is nothing to draw: no labels")
    batches = Search(scorer, number, {} if prune is None else prune, top).batches(
        pipe,
        condition,
        range(seed, seed + len(condition) * number, number),
        sampling=pipe.settings(**settings),
        decoding=decoding,
        cache=cache,
        edit=edit,
        batch_size=batch_size,
        progress=progress,
    )
    return Best.joined(list(batches))


def none() -> None:
    """Return no search: every image that is drawn is delivered."""


def _by_group(prune: object) -> dict[int, float]:
    """Return what stays by number of groups.

    Raises:
        UserError: it does not say so.
    """
    if not isinstance(prune, Mapping):
        raise UserError(f"prune={prune}: say after how many groups what stays, as in {{3: 0.5}}")
    return {int(k) if str(k).isdecimal() else k: kept for k, kept in prune.items()}
