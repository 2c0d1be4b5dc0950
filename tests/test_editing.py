"""Editing, piece by piece: frames, what stays of them cell by cell, and devices and precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor

import var
from tests.conftest import RUNS
from var.editing import Edit, Expansion, Frame, Join, Painting
from var.errors import UserError
from var.pipeline import Pipeline
from var.schedule import Schedule
from var.store import Run
from var.tokenizers.around import Edited, Wrapped
from var.tokenizers.canvas import Around
from var.tokenizers.tokenizer import Canvas

IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
FRAME = Frame((4, 4), 2)  # of all tiny runs
BOX = (0.25, 0.0, 0.75, 0.5)
MADE = torch.zeros(4, 4, dtype=torch.bool)  # the cells of that box
MADE[1:3, :2] = True


def framed(edit: Edit) -> tuple[Tensor, Tensor]:
    assert isinstance(edit, Painting)
    return edit.framed(FRAME)


def patch(height: int, width: int, down: int = 0, across: int = 0) -> Tensor:
    """Return a mask (8, 8), white where so many pixels are."""
    mask = torch.zeros(8, 8)
    mask[down : down + height, across : across + width] = 1
    return mask


def test_a_soft_edge_lies_inside_of_what_is_made() -> None:
    hole = torch.zeros(6, 8, dtype=torch.bool)
    hole[:, 1:] = True
    share = Join(paste=True, soft=2).share(hole)
    assert share is not None
    torch.testing.assert_close(share, torch.tensor([0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1]).expand(6, 8))


def test_an_expanded_image_is_whole_and_where_it_is_put() -> None:
    wide = IMAGE.repeat(1, 1, 2)
    image, hole = Expansion(wide, Join(), 1.0, (0.5, 0.5)).framed(FRAME)
    rows = torch.zeros(8, 8, dtype=torch.bool)
    rows[[0, 1, 6, 7]] = True
    assert torch.equal(hole, rows)
    assert torch.equal(image[:, 0], image[:, 2]) and torch.equal(image[:, 7], image[:, 5])
    for at, expected in {(0, 0): 0, (1.0, 1.0): 6, (0.5, 0.4): 2}.items():
        image, hole = Expansion(IMAGE, Join(), 0.3, at).framed(FRAME)
        assert (~hole).nonzero().min() == expected and (~hole).sum() == 4
    image, hole = Expansion(IMAGE, Join(), 1.0, (0.5, 0.5)).framed(FRAME)
    assert torch.equal(image, IMAGE) and not hole.any()


def test_images_of_other_sizes_are_cut_to_the_frame() -> None:
    large = IMAGE.repeat_interleave(3, 1).repeat_interleave(3, 2)
    tall = torch.cat([torch.zeros(3, 6, 24), large, torch.zeros(3, 6, 24)], dim=1)
    mask = torch.zeros(18, 12)  # half the size of the image, in the same proportions
    mask[3:9] = 1
    image, hole = framed(var.inpaint(tall, mask))
    torch.testing.assert_close(image, IMAGE, rtol=0, atol=0.3)  # resampled
    assert hole[:4].all() and not hole[4:].any()


@pytest.mark.parametrize("size", [(66, 100), (67, 100), (267, 400)])
def test_a_mask_may_be_the_image_in_another_size(size: tuple[int, int]) -> None:
    for image, mask in ((size, (2000, 3000)), ((2000, 3000), size)):  # thirds are rounded
        half = torch.arange(mask[0])[:, None].expand(mask) < mask[0] / 2
        assert framed(var.inpaint(torch.zeros(3, *image), half))[1][:4].all()


@pytest.mark.parametrize("size", [(1, 1), (16, 8), (8, 12)])
def test_a_mask_of_other_proportions_is_named(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"^the mask has .* the image 16 x 8: give a mask of the "):
        var.inpaint(torch.zeros(3, 8, 16), torch.ones(size))


def test_a_line_however_thin_is_made_anew() -> None:
    mask = torch.zeros(800, 800)
    mask[150] = 1  # of the frame a hundredth of the second row of pixels
    for edit in (var.inpaint(IMAGE, mask), var.outpaint(IMAGE, 1 - mask)):
        assert framed(edit)[1].nonzero()[:, 0].unique().tolist() == [1]


# Areas of which less than a cell is to stay, or to be made, and what is said of them.
SMALL: list[tuple[Edit, str]] = [
    (var.outpaint(IMAGE, patch(2, 2, 1, 1)), "nothing would stay: no cell of 2 x 2 pixels"),
    (var.inpaint(IMAGE, 1 - patch(1, 8)), "nothing would stay: no cell of 2 x 2 pixels"),
    (var.expand(torch.rand(3, 4, 64)), "nothing would stay: .* a larger edit.scale"),
    (
        var.inpaint(IMAGE, box=(0, 0, 0.1, 1)),
        r"edit.box=\[.*\] covers none of 4 x 4 cells: use a l",
    ),
    (var.outpaint(IMAGE, box=(0, 0, 0.1, 1)), r"edit.box=\[.*\] covers none of 4 x 4 cells"),
    (var.inpaint(IMAGE, box=(0.1, 0, 1, 1)), r"edit.box=\[0.1, .*\] covers all of 4 x 4 cells: us"),
    (var.outpaint(IMAGE, torch.eye(80)), "the mask leaves nothing to keep of"),
    (var.inpaint(IMAGE.repeat(1, 1, 3), torch.eye(8, 24)), "the mask leaves nothing to make of th"),
]


@pytest.mark.parametrize(("edit", "message"), SMALL)
def test_areas_smaller_than_a_cell_are_named(tiny_run: Run, edit: Edit, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Pipeline(tiny_run)([0], edit=edit)


def test_which_cells_stay_on_each_scale(tiny_run: Run) -> None:
    pipe = Pipeline(tiny_run)
    edited = var.inpaint(IMAGE, box=BOX).around(pipe.tokenizer, pipe.schedule)
    assert isinstance(edited, Edited)
    assert drawn(edited.keep, pipe.schedule) == ["#", ".# .#", "#### ..## ..## ####"]


def drawn(keep: Sequence[Tensor], schedule: Schedule) -> list[str]:
    """Return masks as they would be drawn: row by row, # where the image stays."""
    rows = [mask.view(grid).tolist() for mask, grid in zip(keep, schedule.grids, strict=True)]
    return [" ".join("".join(".#"[cell] for cell in row) for row in mask) for mask in rows]


@dataclass(frozen=True, eq=False)
class Recording(Around):
    """A canvas that notes the tokens that are written."""

    written: list[Tensor]

    def write(self, *tokens: Tensor) -> Self:
        self.written.extend(tokens)
        return replace(self, canvas=self.canvas.write(*tokens))


class Recorded(Wrapped):
    """A tokenizer whose canvases note the tokens that are written."""

    def blank(self, batch: int, schedule: Schedule) -> Canvas:
        self.written: list[Tensor] = []
        return Recording(super().blank(batch, schedule), self.written)


# What stays of 1, 2, 3, 5 and 8 cells, where a box of rows 2..5 and columns 3..7 of 8 is made.
STAYS = [
    "#",
    "#. #.",
    "### #.. ###",
    "##### ##... ##... ##... #####",
    "######## ######## ###..... ###..... ###..... ###..... ######## ########",
]


def test_the_shipped_model_leaves_tokens_that_stay() -> None:
    pipe = var.load("fashion-var")
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    source = pipe.tokenizer.encode(image[None], pipe.schedule)
    pipe.tokenizer = tokenizer = Recorded(pipe.tokenizer)
    *_, last = pipe.steps([3, -1], edit=var.inpaint(image, box=(0.25, 0.375, 0.75, 1)))
    assert last.done == len(STAYS) == len(tokenizer.written)
    for ours, theirs, rows in zip(tokenizer.written, source, STAYS, strict=True):
        stays = torch.tensor([cell == "#" for cell in rows.replace(" ", "")])
        assert torch.equal(ours[:, stays], theirs[:, stays].expand(2, -1))
        assert stays.all() or not torch.equal(ours[:, ~stays], theirs[:, ~stays].expand(2, -1))


def kept(pipe: Pipeline, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents (2, n, C) of the cells that stay of an edit, and what is decoded."""
    blend = "tokens" if pipe.schedule.is_raster else "latent"
    edit = var.inpaint(image, box=BOX, blend=blend, paste=True)
    *_, last = pipe.steps([0, -1], edit=edit)
    latent = last.latent.float().cpu().movedim(1, -1)
    return latent[:, ~MADE], pipe.decode(last, edit).cpu()


@RUNS
def test_in_half_precision_what_stays_is_what_it_is_in_full(run_folder: Path) -> None:
    (half, images), (full, _) = (
        kept(var.load(run_folder, dtype=dtype), IMAGE) for dtype in (torch.bfloat16, torch.float32)
    )
    torch.testing.assert_close(half, full, rtol=0, atol=0)  # codes and latents are in float32
    outside = ~MADE.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(images[..., outside], IMAGE[:, outside].expand(2, -1, -1))


@RUNS
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_edit_runs_where_the_model_is(run_folder: Path, device: str) -> None:
    pipe = var.load(run_folder, device=device)
    ours, images = kept(pipe, IMAGE.to(device))
    source = pipe.tokenizer.encode(IMAGE[None].to(device), pipe.schedule)
    theirs = pipe.tokenizer.blank(1, pipe.schedule).write(*source).latent.detach().cpu()
    theirs = theirs.movedim(1, -1)[:, ~MADE].expand(2, -1, -1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    outside = ~MADE.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(images[..., outside], IMAGE[:, outside].expand(2, -1, -1))
    made = pipe([0, -1], edit=var.inpaint(IMAGE, patch(3, 3).to(device), paste=True, soft=1))
    assert made.device.type == device
