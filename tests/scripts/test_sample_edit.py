"""`var-sample edit=…`: the real configs, images and masks in files."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import var
from tests.conftest import make_run
from tests.scripts.test_sample import command, pixels, place, run
from var import store
from var.errors import UserError
from var.pixels import to_uint8
from var.png import read_settings, save_png

__all__ = ["place"]  # a fixture
PHOTO = to_uint8(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)))
LEFT = torch.zeros(3, 16, 16, dtype=torch.uint8)
LEFT[:, :, :8] = 255
PASTE = ["edit.paste=true", "labels=[-1,dog]", "columns=2"]


@pytest.fixture(autouse=True)
def files(place: Path) -> None:
    """A photo and a mask, twice its size, to work with."""
    save_png(place / "photo.png", PHOTO, {})
    save_png(place / "mask.png", LEFT, {})


def halves(path: str) -> tuple[Tensor, Tensor]:
    """Return the left and the right halves of the two images in a grid."""
    images = torch.stack([pixels(path)[..., :8], pixels(path)[..., 10:]])
    return images[..., :4], images[..., 4:]


def test_white_is_made_anew_and_the_rest_stays(run_folder: Path) -> None:
    run(f"model={run_folder}", "edit=inpaint", "image=photo.png", "mask=mask.png", *PASTE)
    left, right = halves("samples.png")
    assert torch.equal(right, PHOTO[..., 4:].expand_as(right))
    assert not torch.equal(left[0], left[1]) and not torch.equal(left[0], PHOTO[..., :4])


def test_white_stays_and_the_rest_is_made_anew(run_folder: Path) -> None:
    run(f"model={run_folder}", "edit=outpaint", "image=photo.png", "mask=mask.png", *PASTE)
    left, right = halves("samples.png")
    assert torch.equal(left, PHOTO[..., :4].expand_as(left))
    assert not torch.equal(right[0], right[1])


def test_a_box_is_a_mask(run_folder: Path) -> None:
    words = [f"model={run_folder}", "edit=inpaint", "image=photo.png", "number=2"]
    run(*words, "mask=mask.png", "out=a.png")
    run(*words, "edit.box=[0,0,1,0.5]", "out=b.png")
    assert torch.equal(pixels("a.png"), pixels("b.png"))


def test_an_image_is_placed_smaller(run_folder: Path) -> None:
    words = ["edit=expand", "edit.scale=0.5", "edit.at=[0,1]", "image=mask.png", *PASTE]
    run(f"model={run_folder}", *words)
    _, right = halves("samples.png")
    small = LEFT[:, :4, 6:10].expand(2, -1, -1, -1)
    assert (right[:, :, :4].float() - small).abs().max() < 20  # the filter rounds the step off


def test_the_settings_in_a_file_make_its_image_again(run_folder: Path) -> None:
    words = ["edit=vary", "edit.groups=2", "image=photo.png", "labels=[dog]", "seed=4"]
    run(f"model={run_folder}", *words)
    note = read_settings("samples.png")
    assert note["edit"] == {"name": "vary", "image": "photo.png", "groups": 2}
    pipe = var.load(note["model"])
    image = pipe(note["labels"], seed=note["seed"], edit=note["edit"], **note["sampling"])
    assert torch.equal(to_uint8(image)[0], pixels("samples.png"))
    run(f"model={run_folder}", "labels=[dog]", "seed=4", "out=plain.png")
    assert read_settings("plain.png")["edit"] == {"name": "none"}
    assert not torch.equal(pixels("plain.png"), pixels("samples.png"))


def test_without_labels_no_class_is_made(run_folder: Path) -> None:
    run(f"model={run_folder}", "edit=inpaint", "image=photo.png", "mask=mask.png")
    assert read_settings("samples.png")["labels"] == [-1]


FAULTS = {
    "image=photo.png": "image=photo.png is of no use to edit=none: leave it out, or say edit=",
    "mask=mask.png": "mask=mask.png is of no use to edit=none",
    "edit=vary image=photo.png mask=mask.png edit.groups=1": "mask=mask.png is of no use to edit=v",
    "edit=vary image=photo.png": "edit.groups must be given: say edit.groups=…",
    "edit=vary image=photo.png edit.groups=4": "edit.groups=4: this model has 3",
    "edit=inpaint": "edit=inpaint needs an image: say image=photo.png",
    "edit=expand": "edit=expand needs an image: say image=photo.png",
    "edit=expand image=photo.png edit.at=[2,0]": "edit.at=[2, 0]: use [down,across], each from",
    "edit=inpaint image=photo.png": "edit=inpaint needs an area, and one only: say mask=mask.png",
    "edit=inpaint image=no.png mask=mask.png": "cannot read image=no.png: No such file",
    "edit=inpaint image=text.png mask=mask.png": "cannot read image=text.png: not an image",
    "edit=inpaint image=photo.png edit.box=[0,0,1]": "edit.box=[0, 0, 1]: use [y0,x0,y1,x1], fract",
    "edit=inpaint image=photo.png mask=wide.png": "the mask has 16 x 8 pixels, the image 8 x 8: ",
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_of_the_user_is_one_line(
    words: str,
    run_folder: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / "text.png").write_text("no image")
    save_png(place / "wide.png", LEFT[:, :8], {})
    assert command(monkeypatch, f"model={run_folder}", "progress=false", *words.split()) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"var-sample: error: {FAULTS[words]}") and text.count("\n") == 1
    assert not os.path.exists("samples.png")


def test_single_cells_have_no_latent_to_amend(tmp_path: Path) -> None:
    store.save(tmp_path / "raster", make_run(family="raster"))
    words = ["edit=inpaint", "image=photo.png", "mask=mask.png"]
    run(f"model={tmp_path}/raster", *words)
    with pytest.raises(UserError, match="edit.blend=latent amends scales"):
        run(f"model={tmp_path}/raster", *words, "edit.blend=latent")
