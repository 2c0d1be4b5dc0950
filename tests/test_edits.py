"""Editing: what stays of a given image, whatever the model, and what is made in its place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import var
from tests.conftest import RUNS
from var.decoding.sequential import Sequential
from var.editing import Edit, Expansion, Frame, Join, Painting
from var.errors import UserError
from var.heads.base import Prediction
from var.pipeline import Pipeline
from var.pixels import to_uint8
from var.png import save_png
from var.random import Rng
from var.store import Run
from var.tokenizers.canvas import keep_masks
from var.tokenizers.tokenizer import Canvas

IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
FRAME = Frame((4, 4), 2)  # of all tiny runs
BOX = (0.25, 0.0, 0.75, 0.5)
MASK = torch.zeros(8, 8)
MASK[1, 3:6] = 1
ALL, NOTHING = torch.ones(8, 8), torch.zeros(8, 8)


def cells(rows: slice, columns: slice) -> Tensor:
    """Return a mask (4, 4) of cells."""
    mask = torch.zeros(4, 4)
    mask[rows, columns] = 1
    return mask


# Of each kind of edit, what stays of which image.
PLACED = Expansion(IMAGE, Join(), 0.5, (0.5, 0.5)).framed(FRAME)[0]
KINDS: dict[str, tuple[Edit, Tensor, Tensor]] = {
    "inpaint-box": (var.inpaint(IMAGE, box=BOX), IMAGE, 1 - cells(slice(1, 3), slice(0, 2))),
    "inpaint-mask": (var.inpaint(IMAGE, MASK), IMAGE, 1 - cells(slice(0, 1), slice(1, 3))),
    "outpaint": (var.outpaint(IMAGE, box=BOX), IMAGE, cells(slice(1, 3), slice(0, 2))),
    "expand": (var.expand(IMAGE), PLACED, cells(slice(1, 3), slice(1, 3))),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def pipe(tiny_run: Run) -> Pipeline:
    return Pipeline(tiny_run)


class Watched(Sequential):
    """Remembers what was drawn."""

    def begin(self, *args: Any) -> None:
        super().begin(*args)
        self.drawn: list[Tensor] = []

    def settle(self, prediction: Prediction, rng: Rng | None) -> list[Tensor]:
        found = super().settle(prediction, rng)
        self.drawn += found
        return found


def reconstruction(pipe: Pipeline, image: Tensor = IMAGE) -> Canvas:
    tokens = pipe.tokenizer.encode(image[None], pipe.schedule)
    return pipe.tokenizer.blank(1, pipe.schedule).write(*tokens)


@torch.no_grad()
def check_kept(pipe: Pipeline, edit: Edit, image: Tensor, keep: list[Tensor], **how: Any) -> None:
    """Check that what was written is the image's where it stays, and elsewhere what was drawn."""
    decoding = Watched(pipe.model)
    *_, last = pipe.steps([0, 1, -1], seed=3, decoding=decoding, edit=edit, **how)
    source = pipe.tokenizer.encode(image[None], pipe.schedule)
    written, forced = [], 0
    for drawn, mask, given in zip(decoding.drawn, keep, source, strict=True):
        if drawn.ndim > given.ndim:  # mixtures of codes
            given = torch.nn.functional.one_hot(given, drawn.shape[-1]).to(drawn)
        stays = mask[..., None] if drawn.ndim > 2 else mask
        written.append(torch.where(stays, given, drawn))
        forced += int((written[-1] != drawn).sum())
    assert forced  # or it would have been so without an edit
    expected = pipe.tokenizer.blank(3, pipe.schedule).write(*written)
    assert torch.equal(last.latent, expected.latent)


@RUNS
@kinds
def test_tokens_where_the_image_stays_are_its_own(pipe: Pipeline, kind: str) -> None:
    edit, image, mask = KINDS[kind]
    check_kept(pipe, edit, image, keep_masks(mask, pipe.schedule))


@RUNS
@pytest.mark.parametrize("groups", [1, 2])
def test_a_variation_keeps_the_first_groups(pipe: Pipeline, groups: int) -> None:
    keep = [torch.full((size,), k < groups) for k, size in enumerate(pipe.schedule.sizes)]
    check_kept(pipe, var.vary(IMAGE, groups=groups), IMAGE, keep)


def test_mixtures_of_codes_are_replaced_too(pipe: Pipeline) -> None:
    edit, image, mask = KINDS["inpaint-box"]
    check_kept(pipe, edit, image, keep_masks(mask, pipe.schedule), smooth=True)


def blends(pipe: Pipeline) -> list[str]:
    return ["tokens"] if pipe.schedule.is_raster else ["tokens", "latent"]


@RUNS
def test_latents_where_the_image_stays_are_its_own(pipe: Pipeline) -> None:
    edit = var.inpaint(IMAGE, box=BOX, blend="latent")
    if pipe.schedule.is_raster:
        with pytest.raises(UserError, match=r"^edit\.blend=latent amends scales, .* use edit\."):
            pipe([0], edit=edit)
        return
    *_, last = pipe.steps([0, 1], edit=edit)
    stays = KINDS["inpaint-box"][2].bool()
    ours, theirs = last.latent, reconstruction(pipe).latent.expand(2, -1, -1, -1)
    assert torch.equal(ours[..., stays], theirs[..., stays])
    assert not torch.isclose(ours[..., ~stays], theirs[..., ~stays]).all()


@RUNS
def test_an_edit_that_keeps_nothing_is_plain_sampling(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    plain = pipe([0, 1], seed=5)
    nothing = [var.inpaint(IMAGE, ALL, blend=blend, paste=True) for blend in blends(pipe)]
    nothing += [var.outpaint(IMAGE, NOTHING), var.inpaint(IMAGE, box=(0, 0, 1, 1))]
    with caplog.at_level(logging.WARNING, logger="var.editing"):
        for edit in (*nothing, var.vary(IMAGE, groups=0)):
            assert torch.equal(pipe([0, 1], seed=5, edit=edit), plain)
    assert len(caplog.records) == len(nothing)
    assert "keeps nothing" in caplog.text


@RUNS
def test_an_edit_that_keeps_everything_is_the_reconstruction(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    plain = pipe.decode(reconstruction(pipe))[0]
    everything = [var.inpaint(IMAGE, NOTHING, blend=blend) for blend in blends(pipe)]
    everything += [var.outpaint(IMAGE, ALL), var.expand(IMAGE, scale=1)]
    with caplog.at_level(logging.WARNING, logger="var.editing"):
        for edit in (*everything, var.vary(IMAGE, groups=len(pipe.schedule))):
            torch.testing.assert_close(pipe([0, 1], edit=edit), plain.expand(2, -1, -1, -1))
    assert len(caplog.records) == len(everything)
    assert "leaves nothing to make" in caplog.text


@RUNS
@kinds
def test_pasted_pixels_are_the_images(pipe: Pipeline, kind: str) -> None:
    edit, image, _ = KINDS[kind]
    assert isinstance(edit, Painting)
    hole = edit.framed(FRAME)[1]
    pasted = type(edit)(**{**vars(edit), "join": Join(paste=True)})
    ours, made = (pipe([0, 1], edit=each) for each in (pasted, edit))
    assert torch.equal(ours[..., hole], made[..., hole])
    assert torch.equal(ours[..., ~hole], image.expand(2, -1, -1, -1)[..., ~hole])
    assert not torch.isclose(made[..., ~hole], ours[..., ~hole]).all()
    *_, last = pipe.steps([0, 1], edit=pasted)
    torch.testing.assert_close(pipe.decode(last, pasted), ours)


@RUNS
@kinds
def test_an_edited_image_does_not_depend_on_those_beside_it(pipe: Pipeline, kind: str) -> None:
    edit = KINDS[kind][0]
    images = pipe([0, 1], number=3, seed=4, edit=edit)
    for other in (
        pipe([0, 1], number=3, seed=4, edit=edit, batch_size=4, cache="dense"),
        torch.cat([pipe([0] * 5, seed=4, edit=edit)[:3], pipe([1] * 3, seed=7, edit=edit)]),
    ):
        torch.testing.assert_close(other, images, rtol=0, atol=1e-5)


def test_the_image_is_encoded_once(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    encode = pipe.tokenizer.encode
    monkeypatch.setattr(
        pipe.tokenizer, "encode", lambda image, *args: asked.append(image) or encode(image, *args)
    )
    pipe([0], number=5, batch_size=2, edit=var.inpaint(IMAGE, MASK, blend="latent"))
    assert [image.shape for image in asked] == [(1, 3, 8, 8)]


@RUNS
def test_one_image_serves_whichever_rows_are_left(pipe: Pipeline) -> None:
    three = torch.stack([torch.zeros_like(IMAGE), IMAGE, torch.ones_like(IMAGE)])
    first, *others = pipe.tokenizer.encode(three, pipe.schedule)
    left = torch.tensor([2, 0])
    later = [group[left] for group in others]
    for blend in blends(pipe):
        edit = var.inpaint(IMAGE, box=BOX, blend=blend)
        tokenizer = edit.around(pipe.tokenizer, pipe.schedule)
        few = tokenizer.blank(3, pipe.schedule).write(first).rows(left).write(*later)
        fresh = tokenizer.blank(2, pipe.schedule).write(first[left], *later)
        assert torch.equal(few.latent, fresh.latent)
        assert not torch.equal(few.latent[0], few.latent[1])


@pytest.mark.parametrize("tiny_run", ["raster", "var"], indirect=True)
def test_several_tokens_at_a_time_leave_what_stays(pipe: Pipeline) -> None:
    edit, stays = KINDS["inpaint-box"][0], KINDS["inpaint-box"][2].bool()
    jacobi = {"name": "jacobi", "window": 2}
    *_, last = pipe.steps([0, 1], decoding=jacobi, edit=edit)
    source = reconstruction(pipe)
    if pipe.schedule.is_raster:
        assert torch.equal(last.latent[..., stays], source.latent.expand(2, -1, -1, -1)[..., stays])
        assert not torch.equal(last.latent[0, :, ~stays], source.latent[0, :, ~stays])
    everything = var.inpaint(IMAGE, NOTHING)
    same = pipe([0, 1], decoding=jacobi, edit=everything)
    torch.testing.assert_close(same, pipe.decode(source).expand(2, -1, -1, -1))


def test_an_edit_can_be_named(pipe: Pipeline, tmp_path: Path) -> None:
    save_png(tmp_path / "photo.png", to_uint8(IMAGE), {})
    named = {"name": "inpaint", "image": str(tmp_path / "photo.png"), "box": [*BOX]}
    edit = var.inpaint(tmp_path / "photo.png", box=BOX)
    assert torch.equal(pipe([0], edit=named), pipe([0], edit=edit))
    assert torch.equal(pipe([0], edit={"name": "none"}), pipe([0]))
    assert torch.equal(pipe([0], edit="none"), pipe([0]))
    with pytest.raises(UserError, match="edit inpaint: missing image"):
        pipe([0], edit="inpaint")
    with pytest.raises(UserError, match="unknown edit 'crop': there are expand, inpaint, none"):
        pipe([0], edit={"name": "crop"})
    with pytest.raises(UserError, match="edit inpaint: unknown softness"):
        pipe([0], edit={**named, "softness": 1})


FAULTS: list[tuple[Any, dict[str, Any], str]] = [
    (var.inpaint, {}, "edit=inpaint needs an area, and one only: say mask="),
    (var.outpaint, {"mask": MASK, "box": BOX}, "edit=outpaint needs an area, and one only"),
    (var.inpaint, {"mask": torch.zeros(8, 12)}, r"the mask has 12 x 8 pixels, the image 8 x 8: "),
    (var.inpaint, {"mask": "no.png"}, r"cannot read mask=no\.png: No such file"),
    (
        var.inpaint,
        {"mask": MASK[:, None]},
        r"mask must be of shape \(H, W\) or \(1, H, W\), got \(",
    ),
    (var.inpaint, {"box": [0.5, 0, 0.5, 1]}, r"edit\.box=\[0\.5, 0, 0\.5, 1\]: use \[y0,x0,"),
    (var.inpaint, {"box": [0, 0, 8, 8]}, "fractions of the image from 0 to 1"),
    (var.inpaint, {"box": "half"}, "edit.box=half: use"),
    (var.inpaint, {"box": "0011"}, "edit.box=0011: use"),
    (var.inpaint, {"box": BOX, "paste": "no"}, "edit.paste=no: use true or false"),
    (var.inpaint, {"box": BOX, "paste": 1}, "edit.paste=1: use true or false"),
    (var.inpaint, {"box": BOX, "paste": True, "soft": True}, "edit.soft=True: use a whole number"),
    (var.inpaint, {"box": BOX, "blend": "alpha"}, "edit.blend=alpha: use tokens or latent"),
    (var.inpaint, {"box": BOX, "soft": 2}, "edit.soft=2 is the edge of pasted pixels"),
    (var.inpaint, {"box": BOX, "paste": True, "soft": -1}, "edit.soft=-1: use a whole number"),
    (var.expand, {"scale": 0}, "edit.scale=0: use a share"),
    (var.expand, {"scale": "half"}, "edit.scale=half: use a share"),
    (var.expand, {"scale": True}, "edit.scale=True: use a share"),
    (var.expand, {"at": [0.5]}, r"edit\.at=\[0\.5\]: use \[down,across\]"),
    (var.vary, {"groups": 1.5}, "edit.groups=1.5: use a whole number"),
    (var.vary, {"groups": True}, "edit.groups=True: use a whole number"),
]


@pytest.mark.parametrize(("make", "given", "message"), FAULTS)
def test_a_fault_of_the_user_is_named(make: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(IMAGE, **given)
    with pytest.raises(UserError, match="needs an image: say image="):
        make(None, **({"groups": 1} if make is var.vary else {}))


@pytest.mark.parametrize("groups", [-1, 4])
def test_groups_that_there_are_not_are_named(pipe: Pipeline, groups: int) -> None:
    with pytest.raises(UserError, match=rf"edit\.groups={groups}: this model has 3, use 0\.\.3"):
        pipe([0], edit=var.vary(IMAGE, groups=groups))


def test_whole_numbers_may_be_numpys(pipe: Pipeline) -> None:
    one = pipe([0], edit=var.vary(IMAGE, groups=1))
    assert torch.equal(pipe([0], edit=var.vary(IMAGE, groups=np.int64(1))), one)
    assert Join(paste=True, soft=np.int32(1)).share(MASK.bool()) is not None
