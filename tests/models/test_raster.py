"""The raster model alone: the naive way, texts, weights as published, dropout, precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.tiny import Family, close, described
from var.bench.naive_raster import NaiveRaster
from var.cache.base import CacheKind, nbytes
from var.cache.dense import Dense
from var.cache.static import Static
from var.condition import Condition
from var.decoding.loop import decide
from var.decoding.sequential import Sequential
from var.errors import UserError
from var.models.raster import Raster, gated_width
from var.random import Rng
from var.sampling import Sampling

KINDS = pytest.mark.parametrize("kind", [Dense, Static])
RASTERS = {name: family for name, family in tiny.VARIANTS.items() if name.startswith("raster")}
rasters = pytest.mark.parametrize("family", RASTERS.values(), ids=RASTERS)
TEXT = RASTERS["raster-text"]
LENGTH, CHANNELS = tiny.TEXT
LABELS = torch.tensor([0, -1, 3])


@torch.no_grad()
def read(model: Any, condition: Condition, kind: CacheKind | None = None) -> Tensor:
    """Return the features (B, L, D) of random tokens: at once, or with a cache one by one."""
    schedule = getattr(model, "model", model).schedule
    x = tiny.ids(len(condition), len(schedule))
    if kind is None:
        return model(x, schedule[:], condition)
    cache, found = model.new_cache(kind), []
    for k in range(len(schedule)):
        span = schedule[k : k + 1]
        found.append(model(x[:, k : k + 1], span, condition, cache))
        cache.advance(span)
    return torch.cat(found, dim=1)


def text(rows: int = 3, length: int = LENGTH, seed: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, CHANNELS, generator=rng)


@KINDS
@rasters
def test_it_is_what_published_code_computes_with_masks_over_everything(
    family: Family, kind: CacheKind
) -> None:
    model, condition = family.model(), family.condition(LABELS)
    naive = NaiveRaster(model)
    exact = read(naive, condition)
    close(read(naive, condition, kind), exact)
    close(read(model, condition), exact)
    close(read(model, condition, kind), exact)


def test_a_text_takes_one_place_in_a_cache() -> None:
    model, cells = TEXT.model(), len(TEXT.schedule)
    cache = model.new_cache(Static)
    with torch.no_grad():
        model(tiny.ids(3, cells), model.schedule[:], described(LABELS), cache)
    assert nbytes(cache) == 2 * 2 * 3 * cells * tiny.WIDTH * 4


@pytest.mark.parametrize("kind", [None, Dense, Static])
def test_padding_does_not_matter(kind: CacheKind | None) -> None:
    model, longer = tiny.worded(), tiny.worded(text_length=LENGTH + 5)
    words, noise = text(length=4), 9 * text(length=8, seed=9)
    valid = torch.tensor([True] * 4 + [False] * 3).expand(3, -1)
    right = Condition.of_text(torch.cat([words, noise[:, :3]], dim=1), valid)
    exact = read(model, right, kind)
    middle = torch.cat([noise[:, :1], words, noise[:, 6:]], dim=1)
    close(read(model, Condition.of_text(middle, valid.roll(1, dims=1)), kind), exact)
    split = torch.cat([words[:, :1], noise[:, :3], words[:, 1:]], dim=1)
    gaps = torch.tensor([True, False, False, False, True, True, True]).expand(3, -1)
    close(read(model, Condition.of_text(split, gaps), kind), exact)
    padded = Condition.of_text(
        torch.cat([words, noise], dim=1), torch.cat([valid, torch.zeros(3, 5).bool()], dim=1)
    )
    close(read(longer, padded, kind), exact)
    assert not torch.allclose(read(model, Condition.of_text(middle), kind), exact, atol=1e-2)


def test_without_marks_every_feature_counts() -> None:
    model, marked = tiny.worded(), Condition.of_text(text(), torch.ones(3, LENGTH))
    assert torch.equal(read(model, Condition.of_text(text())), read(model, marked))


@pytest.mark.parametrize("kind", [None, Static])
def test_where_the_label_is_minus_one_the_null_text_is_read(kind: CacheKind | None) -> None:
    model, valid = tiny.worded(), torch.arange(LENGTH) < torch.tensor([[2], [5], [LENGTH]])
    condition = Condition.of_text(text(), valid)
    null = replace(condition, labels=torch.full((3,), -1))
    said = replace(condition, text=model.source.null.expand(3, -1, -1))
    close(read(model, null, kind), read(model, said, kind))
    assert not torch.allclose(read(model, null, kind), read(model, condition, kind), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [None, Dense, Static])
def test_a_text_of_nothing_leaves_the_numbers_finite(
    kind: CacheKind | None, dtype: torch.dtype
) -> None:
    model = tiny.worded().to(dtype)
    condition = Condition.of_text(text(), torch.tensor([[False]] * 2 + [[True]]).expand(3, LENGTH))
    found = read(model, condition, kind)
    assert found.isfinite().all()
    other = replace(condition, text=condition.text * 0 + 1)
    # The first token sees the last feature, the others nothing of the text.
    changed = (read(model, other, kind) != found).any(dim=-1)
    assert changed[:, 0].all() and changed[2].all() and not changed[:2, 1:].any()


def test_a_text_of_nothing_trains() -> None:
    model = tiny.worded().train()
    condition = Condition.of_text(text(), torch.zeros(3, LENGTH))
    model(tiny.ids(3, 9), model.schedule[:], condition).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("sampling", tiny.FAMILIES["raster"].samplings)
@KINDS
def test_texts_are_drawn_as_they_are_read(sampling: Sampling, kind: CacheKind) -> None:
    model, condition = tiny.worded(), described(torch.arange(5) - 1)

    def tokens(condition: Condition, seeds: list[int]) -> Tensor:
        decoding = Sequential(model, kind)
        turns = decide(tiny.flat(), model.schedule, condition, decoding, sampling, Rng(seeds))
        *_, canvas = turns
        return canvas.ids

    together = tokens(condition, [*range(5)])
    assert len(together.unique()) > 5
    for i in range(5):
        fields = (condition.labels, condition.text, condition.valid)
        alone = Condition(*(each[i : i + 1] for each in fields))
        assert torch.equal(tokens(alone, [i]), together[i : i + 1])
    # Teacher forcing gives the same predictions: the likeliest tokens are its own.
    *_, canvas = decide(
        tiny.flat(),
        model.schedule,
        condition,
        Sequential(model, kind),
        tiny.FAMILIES["raster"].plain,
    )
    h = model(canvas.read(model.schedule[:]), model.schedule[:], condition)
    assert torch.equal(model.head.linear(h).argmax(dim=-1), canvas.ids)


def test_conditions_of_the_other_kind_are_refused() -> None:
    x, texts = tiny.ids(3, 9), described(LABELS)
    with pytest.raises(UserError, match="this model reads classes, got texts"):
        tiny.raster()(x, tiny.raster().schedule[:], texts)
    model = tiny.worded()
    with pytest.raises(UserError, match=r"reads texts of \(7, 10\), got no text"):
        model(x, model.schedule[:], Condition(LABELS))
    with pytest.raises(UserError, match=r"got features \(4, 10\)"):
        model(x, model.schedule[:], Condition.of_text(text(length=4)))
    for wrong in ({"classes": 3, "text": 4}, {}):
        with pytest.raises(ValueError, match="classes or on texts: give one"):
            Raster(vocabulary=8, grid=2, depth=1, width=16, heads=2, **wrong)


def test_without_a_null_class_there_is_no_minus_one() -> None:
    model = tiny.raster(null_class=False)
    read(model, Condition(torch.tensor([0, tiny.CLASSES - 1])))
    for label in (-1, tiny.CLASSES):
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
            read(model, Condition(torch.tensor([label])))


@pytest.mark.parametrize("changes", [{}, {"classes": None, "text": 10}])
def test_new_weights_are_drawn_as_published(changes: dict) -> None:
    torch.manual_seed(0)
    model = Raster(
        **{
            "vocabulary": 64,
            "grid": 2,
            "depth": 2,
            "width": 96,
            "heads": 4,
            "classes": 9,
            **changes,
        }
    )
    for part in model.modules():
        if part is model.head.linear:
            assert not part.weight.any() and part.bias is None
        elif isinstance(part, nn.Linear | nn.Embedding):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert getattr(part, "bias", None) is None
        elif isinstance(part, nn.RMSNorm):
            assert part.weight.eq(1).all() and part.eps == 1e-5
    if model.source.__class__.__name__ == "Text":
        assert model.source.null.std().item() == pytest.approx(10**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("width", "hidden"), [(768, 2048), (1024, 2816), (1280, 3584), (1536, 4096), (3200, 8704)]
)
def test_middles_are_as_wide_as_published(width: int, hidden: int) -> None:
    assert gated_width(width) == hidden
    assert gated_width(12, multiple=8) == 32 and gated_width(12, multiple=8, factor=1.3) == 48


@pytest.mark.parametrize("kind", ["drop", "attention_drop", "token_drop", "drop_path"])
@pytest.mark.parametrize("name", ["raster", "raster-text"])
def test_dropout_acts_in_training_only(kind: str, name: str) -> None:
    family = tiny.VARIANTS[name]
    model, plain = family.model(**{kind: 0.5}), family.model()
    condition = family.condition(torch.tensor([0, 1]))
    expected = read(plain, condition)
    assert torch.equal(read(model, condition), expected)
    torch.manual_seed(0)
    first, again = (read(model.train(), condition) for _ in range(2))
    assert not torch.allclose(first, again, atol=1e-3)
    assert not torch.allclose(first, expected, atol=1e-3)


def test_rows_of_the_grid_are_told_from_columns() -> None:
    tall, wide = (read(tiny.raster(grid=grid), Condition(LABELS)) for grid in ((3, 2), (2, 3)))
    close(tall[:, :3], wide[:, :3])  # what is read for the third one is the second cell
    assert not torch.allclose(tall[:, 3:], wide[:, 3:], atol=1e-3)
