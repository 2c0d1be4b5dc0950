"""The single-scale tokenizer: pixels to a grid of ids and back."""

import pytest
import torch
from torch import Tensor

from tests import tiny
from var import recipe, store
from var.errors import UserError
from var.recipe import Recipe
from var.schedule import Schedule
from var.store import Run
from var.tokenizers.singlescale import VQ

SPEC = {
    "vocabulary": 16, "channels": 4, "inner": 6, "width": 8, "multipliers": (1, 2), "blocks": 1,
    "groups": 4,
}  # fmt: skip
SCHEDULE = Schedule.raster(4)
GRID = (2, 3)
CELLS = (5, 0, 3, 1, 4, 2)
PERMUTED = Schedule(grids=(GRID,) * 6, cells=tuple((cell,) for cell in CELLS))


def make(**changes: object) -> VQ:
    made = VQ(**{**SPEC, **changes})  # type: ignore[arg-type]
    tiny.shaken(made, scale=0.3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vq() -> VQ:
    return make()


def images(count: int = 3, h: int = 8, w: int = 8) -> Tensor:
    return torch.rand(count, 3, h, w, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, Schedule.raster(GRID), Schedule.raster(1), PERMUTED]
)
def test_images_become_tokens_and_images_again(vq: VQ, schedule: Schedule) -> None:
    h, w = (2 * side for side in schedule.grids[0])
    tokens = vq.encode(images(h=h, w=w), schedule)
    assert [ids.shape for ids in tokens] == [(3, 1)] * len(schedule)
    canvas = vq.blank(3, schedule).write(*tokens)
    made = vq.decode(canvas)
    assert made.shape == (3, 3, h, w) and made.dtype == torch.float32
    assert made.min() >= 0 and made.max() <= 1
    again = vq.encode(made, schedule)
    assert len(again) == len(tokens) and all(ids.dtype == torch.int64 for ids in again)
    kept = vq.tokens(vq.compress(made, schedule), schedule)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


def test_in_whatever_order_an_image_is_decided_it_is_the_same(vq: VQ) -> None:
    image, raster = images(h=4, w=6), Schedule.raster(GRID)
    rows, mixed = vq.encode(image, raster), vq.encode(image, PERMUTED)
    assert all(torch.equal(mixed[i], rows[cell]) for i, cell in enumerate(CELLS))
    assert torch.equal(
        vq.decode(vq.blank(3, PERMUTED).write(*mixed)), vq.decode(vq.blank(3, raster).write(*rows))
    )


def test_decoding_what_was_encoded_equals_the_training_reconstruction(vq: VQ) -> None:
    canvas = vq.blank(3, SCHEDULE).write(*vq.encode(images(), SCHEDULE))
    reconstruction, quantised = vq(images(), SCHEDULE)
    torch.testing.assert_close(vq.decode(canvas), reconstruction.clamp(0, 1), atol=1e-5, rtol=0)
    assert torch.equal(quantised.tokens[0], canvas.ids)


def test_an_image_has_the_same_ids_alone_and_in_a_batch(vq: VQ) -> None:
    together, alone = vq.encode(images(), SCHEDULE), vq.encode(images()[1:2], SCHEDULE)
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    assert len(torch.cat(together).unique()) > 3, "or it says nothing"


def test_tokens_that_are_kept_small_are_read_as_they_were(vq: VQ) -> None:
    code = vq.compress(images(), SCHEDULE)
    small = vq.tokens(code.to(torch.int16), SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(small, vq.tokens(code, SCHEDULE), strict=True))


def test_bad_sizes_are_told_in_one_line(vq: VQ) -> None:
    with pytest.raises(ValueError, match=r"^image sides must be multiples of 2, got \(7, 8\)$"):
        vq.encode(images(h=7), SCHEDULE)
    with pytest.raises(ValueError, match=r"^the latent grid is \(4, 3\), the schedule's \(4, 4\)$"):
        vq.encode(images(w=6), SCHEDULE)
    with pytest.raises(ValueError, match="^16 ids are not the cells of a grid of 5 x 5$"):
        vq.tokens(vq.compress(images(), SCHEDULE), Schedule.raster(5))
    with pytest.raises(UserError, match="^a tokenizer of one grid decides it cell by cell, .*4}$"):
        vq.encode(images(), Schedule.scales([1, 2, 4]))


def test_what_a_generator_must_know_is_the_number_of_codes(vq: VQ) -> None:
    assert vq.terms == {"vocabulary": 16} and vq.any_schedule


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half_can_be_left_out(half: str) -> None:
    made = make(**{half: False})
    assert not hasattr(made, half)
    assert made.fast(torch.float32).quantizer is made.quantizer


def test_a_run_folder_brings_it_back(vq: VQ, tmp_path: object) -> None:
    spec = {"_target_": "var.tokenizers.singlescale.VQ", **SPEC}
    module = recipe.build(spec, "it", device="cpu")
    module.load_state_dict(vq.state_dict())
    store.save(tmp_path, Run(Recipe(spec, SCHEDULE), module))  # type: ignore[arg-type]
    again = store.load(tmp_path)  # type: ignore[arg-type]
    assert again.recipe.schedule == SCHEDULE and isinstance(again.tokenizer, VQ)
    tokens = again.tokenizer.encode(images(), SCHEDULE)
    expected = vq.encode(images(), SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(tokens, expected, strict=True))
