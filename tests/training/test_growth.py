"""Weights of a run for other classes, and for another schedule."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.conftest import make_run
from tests.training.words import TRAINER, forget, train
from var import store
from var.data.images import digits
from var.data.numbered import Numbered
from var.errors import UserError
from var.nn.classes import Classes
from var.schedule import Schedule
from var.store import Run
from var.training import growth


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    forget()


def same(model: Any) -> list[int]:
    return list(range(next(m for m in model.modules() if isinstance(m, Classes)).null))


@tiny.families
def test_the_same_classes_on_the_same_schedule_keep_every_bit(family: tiny.Family) -> None:
    model, schedule = family.model(), family.schedule
    state = growth.grown(model, model, classes=same(model), old=schedule, new=schedule)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


PLACES = {"stem.positions", "stem.levels", "encoder_places", "decoder_places", "head_places"}


@tiny.families
def test_on_another_schedule_only_tables_of_places_change(family: tiny.Family) -> None:
    other = {"grid": (4, 5)} if "grid" in family.elsewhere else {"ladder": (1, 2, 3, (5, 6), 8)}
    old, new = family.model(), family.model(**other)
    state = growth.grown(old, new, classes=same(old), old=old.schedule, new=new.schedule)
    new.load_state_dict(state)
    for key, value in old.state_dict().items():
        if key not in PLACES:
            assert torch.equal(state[key], value)
        elif key != "stem.levels":  # scales that both have know their places as before
            assert torch.equal(state[key][:14], value[:14])


def test_a_smooth_table_stays_smooth_and_keeps_its_values_where_cells_meet() -> None:
    old, new = Schedule.scales([1, 4]), Schedule.scales([1, 12])
    place = torch.arange(4.0)
    picture = torch.sin(place / 3)[:, None] + torch.cos(place / 4)
    table = torch.cat([torch.tensor([7.0]), picture.flatten()])[:, None]
    grown = growth.positions(table, old, new, 145)
    assert grown[0] == 7
    larger = grown[1:].view(12, 12)
    torch.testing.assert_close(larger[1::3, 1::3][1:3, 1:3], picture[1:3, 1:3])
    for line in (larger, larger.T):
        assert line.diff(dim=0).abs().max() < picture.diff(dim=0).abs().max()


def test_each_new_scale_learns_of_the_old_one_of_its_size() -> None:
    old, new = Schedule.scales([1, 2, 4, 8]), Schedule.scales([1, 2, 3, 4, 8, 16])
    assert growth.nearest(old.grids, new.grids) == [0, 1, 2, 2, 3, 3]
    assert growth.nearest(new.grids, old.grids) == [0, 1, 3, 4]


def test_classes_are_known_by_name_and_else_by_number() -> None:
    known = ["Cat", "Dog", "Dog", "cat"]
    assert growth.matched(known, known) == [0, 1, 2, 3]
    assert growth.matched(["dog", "bird", "Cat", "cat"], known) == [1, None, 0, 3]
    assert growth.matched(["n01", "n02"], known, by_number=True) == [0, 1]
    assert growth.matched(["n01", "Dog"], known, by_number=True) == [None, 1]
    assert growth.matched(["n01", "n02"], known) == [None, None]


@pytest.mark.parametrize("null", [True, False])
def test_new_classes_begin_as_no_class_and_the_null_class_stays(null: bool) -> None:
    table = Classes(3, 4, null=null)
    rows = growth.embeddings(table, [2, None, 0])
    none = table.weight[3] if null else table.weight.mean(dim=0)
    expected = [table.weight[2], none, table.weight[0], *([none] if null else [])]
    assert torch.equal(rows, torch.stack(expected))


def test_a_data_set_among_other_classes_says_their_ids() -> None:
    data = digits(size=8)
    among = Numbered(data, range(3, 13), ["a", "b", "c", *data.classes])
    assert torch.equal(among.__getitems__([4, 5]).label, data.__getitems__([4, 5]).label + 3)
    assert len(among) == len(data) and among.plain().classes == among.classes
    assert among.digest() == data.digest()


# Ten digits of eight pixels, on a run of the three classes cat, Dog and T-shirt/top.
DIGITS = ("data=digits", "data.train.size=8", "data.test.size=8", "tokenizer=trained", "name=new")


def begin(folder: Path, family: str, *words: str, run: Run | None = None) -> Run:
    """Train two steps from a tiny run; return what comes of it."""
    store.save(folder / "old", run or make_run(family=family))
    place = "schedule={raster:4}" if family == "raster" else "schedule=[1,2,4]"
    paths = (f"init.run={folder / 'old'}", f"tokenizer.run={folder / 'old'}")
    train(folder, *DIGITS, place, *TRAINER, *paths, "trainer.steps=2", *words)
    return store.load(folder / "new")


def table(run: Run) -> Tensor:
    assert run.model is not None
    return next(m.weight for m in run.model.modules() if isinstance(m, Classes))


@pytest.mark.parametrize("family", ["var", "mvar", "flowar", "raster"])
def test_a_run_learns_new_classes_beside_its_own(tmp_path: Path, family: str) -> None:
    where = "source" if family == "raster" else "*classes"
    words = ("init.classes=grow", "init.like=dog", f"tuning.layers=['{where}.weight']")
    plain = ("drop_label=0", "trainer.weight_decay=0", "trainer.weight_decay_end=0")
    new, old = begin(tmp_path, family, *words, *plain), make_run(family=family)
    assert new.recipe.data.classes == (*old.recipe.data.classes, *map(str, range(10)))
    before, after = table(old), table(new)
    assert torch.equal(after[:3], before[:3]) and torch.equal(after[-1], before[-1])
    moved = (after[3:-1] - before[1]).abs().amax(dim=1)
    assert 0 < moved.max() < 0.01


def test_a_run_gives_way_to_the_classes_of_the_data(tmp_path: Path) -> None:
    old = make_run()
    named = replace(old.recipe.data, classes=("3", "cow", "5"))
    old = replace(old, recipe=replace(old.recipe, data=named))
    new = begin(tmp_path, "var", "trainer.rate=0", run=old)
    assert new.recipe.data.classes == tuple(map(str, range(10)))
    rows = table(old)[[3, 3, 3, 0, 3, 2, 3, 3, 3, 3, 3]]
    assert torch.equal(table(new), rows)


@pytest.mark.parametrize(
    ("family", "place"), [("flowar", "schedule=[1,3,6,8]"), ("raster", "schedule.raster=8")]
)
def test_a_run_goes_on_with_larger_images(tmp_path: Path, family: str, place: str) -> None:
    new = begin(tmp_path, family, place, "data.train.size=16")
    assert new.recipe.data.size == 16 and new.recipe.schedule.grids[-1] == (8, 8)
    old, model = make_run(family=family).model, new.model
    assert old is not None and model is not None
    for key, value in old.state_dict().items():
        if value.shape == model.state_dict()[key].shape:
            torch.testing.assert_close(model.state_dict()[key], value, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("init.classes=all",), "init.classes=all: use data or grow"),
        (("init.like=cow",), "unknown class 'cow'"),
        (("init.run=null", "init.classes=grow", "backbone=var"), "name it by init.run"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        begin(tmp_path, "var", *words)
