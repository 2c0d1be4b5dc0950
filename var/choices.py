"""Caches, decodings and edits by name: what `cache=…` stands for, given a pipeline, and so on.

Each choice is a function of the pipeline it is for and of its own settings; configs name them in
`configs/cache` and `configs/decoding`, `Pipeline` by the tables below. Edits are no pipeline's, and
have a file of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from var import store
from var.cache.base import CacheKind
from var.cache.dense import Dense
from var.cache.scale import Scale
from var.cache.scale_budget import Budget
from var.cache.scale_select import Selection
from var.cache.static import Static
from var.decoding.base import Decoding
from var.decoding.collaborative import Collaborative
from var.decoding.jacobi import Jacobi
from var.decoding.jacobi_published import PublishedJacobi
from var.decoding.sequential import Sequential
from var.editing import Edit
from var.edits import EDITS
from var.errors import UserError
from var.recipe import check_keys
from var.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from var.pipeline import Pipeline


Choice = str | Mapping[str, Any] | Decoding | None
CacheChoice = str | Mapping[str, Any] | CacheKind | None
EditChoice = str | Mapping[str, Any] | Edit | None
T = TypeVar("T")


def static(pipe: Pipeline) -> CacheKind:
    """Return the cache that is allocated once and written in place."""
    return Static


def dense(pipe: Pipeline) -> CacheKind:
    """Return the cache that grows by concatenation."""
    return Dense


def scale(
    pipe: Pipeline,
    *,
    budget: float | str | Path | Sequence[str | Path] | None = None,
    window: int = 16,
    pool: str = "max",
    width: int = 5,
    score: str = "logits",
) -> CacheKind:
    """Return the cache in which each layer keeps what a budget allows (ScaleKV).

    Args:
        pipe: of the model.
        budget: a fraction of the positions before the last group, the same for all layers; or a
            budget file, or several, one for each model that takes part. None: the run's own
            budget for its model, and for models of as many layers, 10 % for those that have none.
        window: see `var.cache.scale_select.Selection`, as the next three.
        pool: max or mean.
        width: number of neighbours pooled.
        score: logits or weights.

    Raises:
        UserError: the model decides no scales; a setting is out of range; a file cannot be read or
            is for another ladder; when the cache is made: no file is for a model of that many
            layers, or the model has no keys.
    """
    if pipe.schedule.is_raster:
        raise UserError(
            "cache scale keeps parts of whole scales, and this model decides single cells: "
            "use cache=static or cache=dense"
        )
    try:
        Selection(window=window, pool=pool, width=width, score=score)
        share = 0.1 if budget is None else budget
        if isinstance(share, float | int):
            Budget.shared(pipe.schedule, 1, share)
    except (ValueError, TypeError) as error:
        raise UserError(f"cache scale: {error}") from error
    budgets = _budgets(pipe, budget)
    chosen = partial(Scale, window=window, pool=pool, width=width, score=score)

    def kind(layers: int, groups: int | None = None, *, recurrent: bool = False) -> Scale:
        if isinstance(share, float | int):
            mine = budgets.get(layers) or Budget.shared(pipe.schedule, layers, share)
        elif layers in budgets:
            mine = budgets[layers]
        else:
            raise UserError(
                f"cache.budget={budget} is for a model of {' or '.join(map(str, budgets)) or 'no'} "
                f"layers, this one has {layers}: give a file for each model, or a fraction for all"
            )
        return chosen(layers, groups, budget=mine, recurrent=recurrent)

    return kind


def _budgets(
    pipe: Pipeline, budget: float | str | Path | Sequence[str | Path] | None
) -> dict[int, Budget]:
    """Return the budgets of which there are files, by number of layers."""
    if isinstance(budget, float | int):
        return {}
    if budget is not None:
        files = [budget] if isinstance(budget, str | Path) else budget
        found = [store.read_budget(Path(file), pipe.schedule) for file in files]
        return {each.layers: each for each in found}
    found = [_own_budget(each) for each in (pipe, *pipe.companions.values())]
    return {each.layers: each for each in reversed(found) if each is not None}


def _own_budget(pipe: Pipeline) -> Budget | None:
    own, layers = pipe.run.budget, len(pipe.model.new_cache(Dense).layers)
    if own is not None and own.layers != layers:
        raise UserError(
            f"the run's {store.BUDGET} is for {own.layers} layers, its model has {layers}: "
            "write another one with var-calibrate, or delete it"
        )
    return own


def sequential(pipe: Pipeline) -> Decoding:
    """Return the decoding in which one model decides group after group."""
    return Sequential(pipe.model)


def collaborative(pipe: Pipeline, *, closer: str, switch: int) -> Decoding:
    """Return the decoding in which this model opens and another run's closes (CoDe).

    Args:
        pipe: of the model that opens.
        closer: name of the other run, which must share the tokenizer.
        switch: number of groups that this model decides, from 1 to one below all.

    Raises:
        UserError: the switch is no whole number; the other run is not there, or of another
            tokenizer.
    """
    if not isinstance(switch, int):
        raise UserError(f"decoding.switch={switch}: use a whole number")
    return Collaborative(pipe.model, pipe.companion(str(closer)).model, switch)


def jacobi(
    pipe: Pipeline,
    *,
    window: int = 16,
    guess: str = "random",
    test: str = "speculative",
    together: bool = False,
) -> Decoding:
    """Return the decoding in which several tokens are guessed, and tested, at a time (SJD).

    Args:
        pipe: of the model.
        window: see `var.decoding.jacobi.Jacobi`, as the others.
        guess: random, left, above, sampled or likeliest.
        test: speculative or match.
        together: let no image of a batch go ahead of the slowest one.

    Raises:
        UserError: a setting is out of range, or the model's tokens are no codes.
    """
    return Jacobi(pipe.model, window, guess, test, together)


def jacobi_published(
    pipe: Pipeline,
    *,
    window: int = 16,
    first: int = 1,
    last: int | None = None,
    top_k: int = 0,
    top_p: float = 0.0,
    test: str = "speculative",
) -> Decoding:
    """Return that decoding as it was released, which is not exact in batches and with top-p.

    Args:
        pipe: of the model.
        window: see `var.decoding.jacobi_published.PublishedJacobi`, as the others.
        first: tokens before windows open.
        last: tokens before they close; None: so many that the last one ends the image.
        top_k: of the second filter.
        top_p: likewise.
        test: speculative or match.

    Raises:
        UserError: see `jacobi`.
    """
    return PublishedJacobi(
        pipe.model, window, first=first, last=last, top_k=top_k, top_p=top_p, test=test
    )


def recommended(pipe: Pipeline) -> Decoding:
    """Return the decoding that the run recommends, `sequential` if it does not say."""
    return decoding(pipe, None)


CACHES: dict[str, Callable[..., CacheKind]] = {
    "dense": dense,
    "scale": scale,
    "static": static,
}

DECODINGS: dict[str, Callable[..., Decoding]] = {
    "collaborative": collaborative,
    "jacobi": jacobi,
    "jacobi_published": jacobi_published,
    "sequential": sequential,
}


def cache(pipe: Pipeline, choice: CacheChoice) -> CacheKind | None:
    """Return the kind of cache of a name, or of its `name` and its settings.

    What is no choice is returned as it is.

    Raises:
        UserError: there is no cache of that name, or its settings are others.
    """
    if not isinstance(choice, str | Mapping):
        return choice
    return _chosen("cache", CACHES, choice, pipe)


def decoding(pipe: Pipeline, choice: Choice) -> Decoding:
    """Return the decoding of a name, or of its `name` and its settings.

    Without a choice, or if it is `recommended`, it is what the run recommends; what is no choice is
    returned as it is.

    Raises:
        UserError: there is no decoding of that name, or its settings are others.
    """
    if choice in (None, "recommended"):
        choice = pipe.run.recipe.decoding or "sequential"
    if not isinstance(choice, str | Mapping):
        return choice
    return _chosen("decoding", DECODINGS, choice, pipe)


def edited(pipe: Pipeline, choice: EditChoice) -> Tokenizer:
    """Return the pipeline's tokenizer, or that of an edit, or of its `name` and its settings.

    Raises:
        UserError: there is no edit of that name, its settings are others, it cannot be read, or it
            is not for this model.
    """
    edit = _chosen("edit", EDITS, choice) if isinstance(choice, str | Mapping) else choice
    return pipe.tokenizer if edit is None else edit.around(pipe.tokenizer, pipe.schedule)


def _chosen(
    what: str, table: Mapping[str, Callable[..., T]], choice: str | Mapping[str, Any], *given: Any
) -> T:
    choice = {"name": choice} if isinstance(choice, str) else choice
    name, settings = choice.get("name"), {k: v for k, v in choice.items() if k != "name"}
    if name not in table:
        raise UserError(f"unknown {what} {name!r}: there are {', '.join(table)}")
    parameters = list(inspect.signature(table[name]).parameters.values())[len(given) :]
    check_keys(
        settings,
        known=[p.name for p in parameters],
        needed=[p.name for p in parameters if p.default is p.empty],
        where=f"{what} {name}",
    )
    return table[name](*given, **settings)
