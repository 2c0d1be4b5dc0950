"""What the page does with pipelines, without a page."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import var
from tests.conftest import RUNS, make_run
from var import store
from var.app.controls import Setting
from var.app.job import Drawn, Wanted
from var.app.service import Service
from var.app.shelf import Shelf
from var.errors import UserError
from var.pixels import to_uint8
from var.store import Run

PHOTO = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
WANTED = Wanted(labels=[0, 2], number=2, seed=5)
PLAIN = {"decoding": {"name": "sequential"}, "cache": {"name": "static"}}


def serving(*folders: Path, room: int = 2) -> Service:
    return Service(Shelf([str(f) for f in folders], device=torch.device("cpu"), room=room), most=6)


def plain(folder: Path, **sampling: float) -> Setting:
    return Setting(str(folder), sampling, **PLAIN)


def last(service: Service, setting: Setting, wanted: Wanted = WANTED) -> Drawn:
    return list(service.draw(setting, wanted))[-1]


@RUNS
def test_images_form_before_the_eyes(run_folder: Path, tiny_run: Run) -> None:
    seen = list(serving(run_folder).draw(plain(run_folder), WANTED))
    schedule = tiny_run.recipe.schedule
    steps = [4, 8, 12, 16] if schedule.is_raster else [1, 2, 3]
    assert [each.done for each in seen] == steps
    assert [each.finished for each in seen] == [done == steps[-1] for done in steps]
    assert [len(each.frames) for each in seen] == [1 + i for i in range(len(steps))]
    assert seen[-1].turns == len(schedule) and "4 images in" in seen[-1].line


@RUNS
def test_the_settings_of_an_image_make_it_again(run_folder: Path) -> None:
    drawn = last(serving(run_folder), plain(run_folder, temperature=0.9))
    pipe = var.load(run_folder)
    for index, image in enumerate(drawn.frames[-1]):
        note = drawn.note(index)
        chosen = {"decoding": note["decoding"], "cache": note["cache"], **note["sampling"]}
        assert note["edit"] == {"name": "none"}
        again = pipe(note["labels"], seed=note["seed"], **chosen)
        assert image.equal(to_uint8(again)[0])


def test_requests_take_turns_and_do_not_meet(run_folder: Path) -> None:
    service, other = serving(run_folder), replace(WANTED, labels=[1], seed=9)
    alone = [last(service, plain(run_folder), wanted).frames[-1] for wanted in (WANTED, other)]
    stopped = service.draw(plain(run_folder), WANTED)
    next(stopped)
    both = [service.draw(plain(run_folder), wanted) for wanted in (WANTED, other)]
    together = list(zip(*both, strict=True))[-1]
    stopped.close()
    assert [each.frames[-1].tolist() for each in together] == [each.tolist() for each in alone]


@RUNS
def test_a_request_ends_by_itself_when_it_shall_stop(run_folder: Path, tiny_run: Run) -> None:
    turns = iter(
        [False, False, False, False, True] if tiny_run.recipe.schedule.is_raster else [0, 1]
    )
    service = serving(run_folder)
    seen = list(service.draw(plain(run_folder), WANTED, lambda: bool(next(turns))))
    rows = tiny_run.recipe.schedule.is_raster
    line = "stopped after 1 of 4 rows" if rows else "stopped after 2 of 3 scales"
    assert seen[-1].line == line and len(seen[-1].frames) == 2
    assert not seen[-1].finished and not any(each.stopped for each in seen[:-1])
    assert last(service, plain(run_folder)).cold  # nothing was warmed up


def test_a_comparison_ends_by_itself_when_it_shall_stop(run_folder: Path) -> None:
    setting = plain(run_folder)
    *_, end = serving(run_folder).compare(setting, setting, WANTED, lambda: True)
    assert end.stopped and not end.finished and "stopped" in end.line


def test_the_first_of_its_kind_is_called_so(run_folder: Path) -> None:
    service = serving(run_folder)
    assert last(service, plain(run_folder)).cold
    assert not last(service, plain(run_folder), replace(WANTED, seed=0)).cold
    assert last(service, plain(run_folder), replace(WANTED, number=1)).cold
    assert "faster" in last(service, plain(run_folder, guidance=0.0)).line


def test_two_settings_are_compared_warm(run_folder: Path) -> None:
    dense = replace(plain(run_folder), cache={"name": "dense"})
    *unfinished, last = serving(run_folder).compare(plain(run_folder), dense, WANTED)
    assert last.finished and not any(each.finished for each in unfinished)
    assert len(unfinished) >= 4 * 3  # it can be stopped after every scale
    assert last.a is not None and last.b is not None
    assert not last.a.cold and not last.b.cold and len(last.a.frames) == 1
    assert "times as fast" in last.line and "the same images" in last.line


def test_models_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    run = make_run()
    data = replace(run.recipe.data, classes=("x", "y", "z"))
    for name, each in (("a", run), ("b", replace(run, recipe=replace(run.recipe, data=data)))):
        store.save(tmp_path / name, each)
    service = serving(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="know different classes"):
        next(service.compare(plain(tmp_path / "a"), plain(tmp_path / "b"), WANTED))


def test_an_edit_keeps_what_stays(run_folder: Path) -> None:
    edit = var.inpaint(PHOTO, box=(0, 0, 1, 0.5), paste=True)
    asked = replace(WANTED, edit=edit, edited={"name": "inpaint", "image": "uploaded"})
    drawn = last(serving(run_folder), plain(run_folder), asked)
    kept = to_uint8(PHOTO)[..., 4:]
    assert all(image[..., 4:].equal(kept) for image in drawn.frames[-1])
    assert drawn.note(0)["edit"]["name"] == "inpaint"


@RUNS
def test_a_reconstruction_is_shown_at_every_scale(run_folder: Path, tiny_run: Run) -> None:
    given, steps, _ = serving(run_folder).reconstruct(str(run_folder), PHOTO)
    pipe = var.load(run_folder)
    tokens = pipe.tokenizer.encode(PHOTO[None], pipe.schedule)
    whole: Tensor = pipe.decode(pipe.tokenizer.blank(1, pipe.schedule).write(*tokens))
    assert given.equal(to_uint8(PHOTO)) and steps[-1].image.equal(to_uint8(whole)[0])
    grids = (
        [(1, 4), (2, 4), (3, 4), (4, 4)] if pipe.schedule.is_raster else [(1, 1), (2, 2), (4, 4)]
    )
    assert [step.grid for step in steps] == grids
    noise = float((whole - PHOTO).square().mean())
    assert steps[-1].psnr == pytest.approx(-10 * torch.tensor(noise).log10().item(), abs=1e-3)


def test_closing_models_are_shared_count_and_are_dropped(tmp_path: Path) -> None:
    run = make_run()
    names = [str(tmp_path / name) for name in "abc"]
    for name in names:
        store.save(Path(name), run)
    a, b, c = names
    service = serving(*map(Path, names))
    shelf = service.shelf
    alone = shelf.pipe(b)
    decoding = {"name": "collaborative", "closer": b, "switch": 1}
    last(service, replace(plain(Path(a)), decoding=decoding))
    first, closer = shelf.pipe(a), shelf.pipe(b)
    assert first.companions == {b: closer} and closer is not alone
    assert shelf.pipe(a, b) is first and first.companions[b] is closer
    shelf.pipe(a), shelf.pipe(c)
    assert first.companions == {} and shelf.pipe(a) is first
    with pytest.raises(UserError, match="not offered"):
        shelf.pipe(a, "digits-var")


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        store.save(tmp_path / name, make_run())
    shelf = serving(*(tmp_path / name for name in "abc")).shelf
    a, b = (shelf.pipe(str(tmp_path / name)) for name in "ab")
    assert shelf.pipe(str(tmp_path / "a")) is a
    shelf.pipe(str(tmp_path / "c"))
    assert shelf.pipe(str(tmp_path / "a")) is a
    assert shelf.pipe(str(tmp_path / "b")) is not b


def test_a_tokenizer_alone_makes_no_images_and_accompanies_nobody(tmp_path: Path) -> None:
    run = make_run()
    store.save(tmp_path / "model", run)
    store.save(tmp_path / "twin", make_run(1))
    alone = Run(replace(run.recipe, backbone=None), run.tokenizer)
    store.save(tmp_path / "tokens", alone)
    shelf = serving(*(tmp_path / name for name in ("model", "twin", "tokens"))).shelf
    assert shelf.generators == [str(tmp_path / "model"), str(tmp_path / "twin")]
    assert shelf.companions(str(tmp_path / "model")) == [str(tmp_path / "twin")]


def test_published_models_are_known_before_they_are_fetched() -> None:
    names = ["var-d16", "var-d20", "mvar-d16", "var-vae", "llamagen-t2i-256", "me/mine"]
    shelf = Shelf(names, device=torch.device("cpu"))
    assert shelf.generators == ["var-d16", "var-d20", "mvar-d16", "me/mine"]  # no texts
    assert shelf.companions("var-d16") == ["var-d20", "mvar-d16"]
    assert shelf.companions("me/mine") == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"labels": []}, "choose a class"),
        ({"labels": [0, 1], "number": 4}, "8 images are more than the 6"),
        ({"seed": -4}, "seed -4: choose one from 0 on"),
        ({"seed": 10**20}, r"below 2\*\*63"),
        ({"seed": 2**63 - 3}, r"below 2\*\*63"),
        ({"number": 0}, "0 images of each"),
        ({"labels": [7]}, "unknown class 7"),
    ],
)
def test_what_makes_no_sense_is_told(run_folder: Path, changes: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        next(serving(run_folder).draw(plain(run_folder), replace(WANTED, **changes)))


def test_a_setting_out_of_range_is_the_users(run_folder: Path) -> None:
    with pytest.raises(UserError, match="temperature must be positive"):
        next(serving(run_folder).draw(plain(run_folder, temperature=0), WANTED))


def test_nothing_is_loaded_but_what_is_offered(run_folder: Path) -> None:
    with pytest.raises(UserError, match="not offered here"):
        next(serving(run_folder).draw(plain(Path("digits-var")), WANTED))


def test_no_memory_is_told_and_the_next_one_is_served(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serving(run_folder)
    with monkeypatch.context() as patch:
        patch.setattr("var.app.job.Job.image", lambda _: (_ for _ in ()).throw(MEMORY))
        with pytest.raises(UserError, match="draw fewer images"):
            last(service, plain(run_folder))
    assert last(service, plain(run_folder)).finished


MEMORY = torch.OutOfMemoryError("CUDA out of memory")
