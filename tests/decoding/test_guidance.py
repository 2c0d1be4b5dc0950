"""Guidance that ends before the image does: the null half is left out, and nothing else changes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import Family, same
from var.cache.base import CacheKind, nbytes
from var.cache.dense import Dense
from var.cache.scale import Scale
from var.cache.scale_budget import Budget
from var.cache.static import Static
from var.condition import Condition
from var.decoding.collaborative import Collaborative
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.random import Rng
from var.sampling import Guide, Sampling
from var.tokenizers.tokenizer import Canvas

KINDS: dict[str, CacheKind] = {"dense": Dense, "static": Static}
TIGHT = partial(Scale, budget=Budget.shared(tiny.SCHEDULE, 2, 0.5))
SHARED = tiny.VARIANTS["var-shared"]
# Compressed memories are for scales.
CASES = [
    *((family, kind) for family in tiny.FAMILIES for kind in KINDS),
    ("var-shared", "static"),
    ("raster-text", "dense"),
    ("raster-text", "static"),
    ("var", "scale"),
    ("var-shared", "scale"),
]
cases = pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(tiny.VARIANTS[family], {**KINDS, "scale": TIGHT}[kind], id=f"{family}-{kind}")
        for family, kind in CASES
    ],
)


def condition(family: Family, rows: int = 3) -> Condition:
    return family.condition(torch.arange(rows) - 1)


def ending(family: Family, groups: int, scale: float = 4.0) -> Sampling:
    """Return settings that are guided at the first groups only."""
    return replace(family.guided, guidance=(scale, 2.0), guided_groups=groups, steps=2)


@torch.no_grad()
def with_all_rows(family: Family, sampling: Sampling, kind: CacheKind, rows: int = 3) -> Tensor:
    """Return the latent of images whose null half is computed to the end, and then not used."""
    model, rng = family.model(), Rng.batch(0, rows)
    schedule, cache = model.schedule, model.new_cache(kind)
    canvas = family.tokenizer().blank(rows, schedule)
    for k in range(len(schedule)):
        span, progress = schedule[k : k + 1], k / (len(schedule) - 1)
        x = torch.cat([canvas.read(span)] * 2)
        h = model(x, span, condition(family, rows).spread(2), cache)
        cache.advance(span)
        if k < (sampling.guided_groups or 0):
            guide = Guide(4.0 + (2.0 - 4.0) * progress, 2, progress)
        else:
            h, guide = h[:rows], Guide(1.0, 1, progress)
        prediction = model.head(h, span, guide).shaped(sampling.at(k))
        canvas = canvas.write(prediction.sample(rng))
    return canvas.latent


def turns(
    family: Family, decoding: Any, sampling: Sampling, rows: int = 3, seed: int = 0
) -> Iterator[Canvas]:
    tokenizer, rng = family.tokenizer(), Rng.batch(seed, rows)
    return decide(tokenizer, family.schedule, condition(family, rows), decoding, sampling, rng)


def latent(*args: Any, **options: Any) -> Tensor:
    *_, canvas = turns(*args, **options)
    return canvas.latent


@pytest.mark.parametrize("groups", [1, 3])
@cases
def test_leaving_the_null_half_out_changes_nothing(
    family: Family, kind: CacheKind, groups: int
) -> None:
    sampling = ending(family, groups)
    ours = latent(family, Sequential(family.model(), kind), sampling)
    same(ours, with_all_rows(family, sampling, kind))
    guided = latent(family, Sequential(family.model(), kind), replace(sampling, guided_groups=None))
    assert not torch.allclose(ours, guided, atol=1e-3)


@cases
def test_no_guided_group_is_no_guidance_and_all_of_them_are_all(
    family: Family, kind: CacheKind
) -> None:
    model = family.model()
    none = latent(family, Sequential(model, kind), ending(family, 0))
    same(
        none,
        latent(
            family,
            Sequential(model, kind),
            replace(ending(family, 0), guidance=0, guided_groups=None),
        ),
    )
    whole = latent(family, Sequential(model, kind), ending(family, len(model.schedule)))
    unlimited = replace(ending(family, 1), guided_groups=None)
    assert torch.equal(whole, latent(family, Sequential(model, kind), unlimited))


@cases
def test_a_cache_that_was_narrowed_serves_all_rows_again(family: Family, kind: CacheKind) -> None:
    decoding, sampling = Sequential(family.model(), kind), ending(family, 2)
    unlimited = replace(sampling, guided_groups=None)
    first = latent(family, decoding, sampling)
    place = decoding.cache.place()
    fresh = latent(family, Sequential(family.model(), kind), unlimited, seed=7)
    same(latent(family, decoding, unlimited, seed=7), fresh)
    same(latent(family, decoding, sampling), first)
    assert decoding.cache.place() == place
    other = latent(family, Sequential(family.model(), kind), sampling, rows=5)
    same(latent(family, decoding, sampling, rows=5), other)


@cases
def test_a_run_cut_short_after_it_was_narrowed_leaves_nothing_behind(
    family: Family, kind: CacheKind
) -> None:
    decoding, sampling = Sequential(family.model(), kind), ending(family, 1)
    begun = turns(family, decoding, sampling)
    next(begun), next(begun)
    fresh = latent(family, Sequential(family.model(), kind), family.guided)
    same(latent(family, decoding, family.guided), fresh)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@tiny.families
def test_a_closer_that_is_not_guided_reads_one_half_only(family: Family, kind: CacheKind) -> None:
    rows: list[int] = []
    opener, closer = family.model(**family.larger), family.model()
    for model in (opener, closer):
        model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    list(turns(family, Collaborative(opener, closer, 2, kind), ending(family, 2)))
    assert rows == [6, 6] + [3] * (len(family.schedule) - 2)


@tiny.families
def test_memories_of_the_null_half_are_given_back_by_the_dense_cache(family: Family) -> None:
    decoding, schedule = Sequential(family.model(), Dense), family.schedule
    begun, before_last = turns(family, decoding, ending(family, 1)), len(schedule) - 1
    for _ in range(before_last):
        next(begun)
    assert nbytes(decoding.cache) == family.held(3, before_last)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_rows_that_were_never_counted_are_forgotten_too(kind: CacheKind) -> None:
    family = tiny.FAMILIES["raster"]
    model, x = family.model(), family.shown(4, 9)
    cache, schedule, labels = model.new_cache(kind), family.schedule, torch.arange(4)
    exact = model(x, schedule[:], Condition(labels)).detach()
    with torch.no_grad():
        for rows in (2, 2, 3):
            cache.rewind(0)
            model(x[:, :4], schedule[:4], Condition(labels), cache)
            cache.advance(schedule[:4])
            cache.narrow(rows)
            rest = model(x[:rows, 4:], schedule[4:], Condition(labels[:rows]), cache)
            cache.advance(schedule[4:])
            same(rest, exact[:rows, 4:])
            cache.rewind(6)
            again = model(x[:rows, 6:], schedule[6:], Condition(labels[:rows]), cache)
            same(again, exact[:rows, 6:])
            cache.advance(schedule[6:])
