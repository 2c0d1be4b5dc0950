"""Trained tokenizers on other ladders: what each scale of the new one takes over."""

from typing import Any

import pytest
import torch
from torch import Tensor

from var.errors import UserError
from var.ladders import nearest, on_ladder
from var.recipe import Recipe, build
from var.schedule import Schedule
from var.store import Run

OLD = Schedule.scales([1, 2, 3, 4])
IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(**changes: Any) -> Run:
    """Return the run of a tokenizer of 8x8 images whose scales differ in all that they have."""
    spec: dict[str, Any] = {"_target_": "var.tokenizers.multiscale.MultiScaleVQ", "scales": 4}
    spec |= {"vocabulary": 8, "channels": 4, "width": 8, "multipliers": [1, 1], "blocks": 1}
    spec |= {"groups": 4, "standardise": True, "sharing": 0} | changes
    torch.manual_seed(0)
    tokenizer: Any = build(spec, "tokenizer", device="cpu")
    if tokenizer.quantizer.standard is not None:
        moments = torch.randn(4, 4), torch.rand(4, 1, 1) * torch.eye(4)
        tokenizer.quantizer.standard.follow(*moments, share=0.5)
    return Run(Recipe(spec, OLD), tokenizer)


def code(run: Run) -> list[Tensor]:
    tokenizer: Any = run.tokenizer
    with torch.no_grad():
        return tokenizer.encode(IMAGE, run.recipe.schedule)


def test_a_scale_takes_over_from_the_one_with_the_most_similar_cells() -> None:
    ten = Schedule.scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
    assert nearest(ten, Schedule.scales([1, 2, 4, 8, 16])) == [0, 1, 3, 6, 9]
    assert nearest(ten, Schedule.scales([1, 7, 14, 20, 24, 32])) == [0, 6, 8, 9, 9, 9]
    assert nearest(ten, Schedule.scales([(1, 4), (4, 16)])) == [1, 6]


def test_as_many_scales_stay_in_their_places() -> None:
    double = Schedule.scales([2, 4, 6, 8])
    assert nearest(OLD, double) == [0, 1, 2, 3]
    old, run = trained(), on_ladder(trained(), double, "x")
    kept, same = old.tokenizer.state_dict(), run.tokenizer.state_dict()
    assert run.recipe.schedule == double and all(torch.equal(kept[k], same[k]) for k in kept)


def test_a_shorter_ladder_reads_its_first_scales_as_the_old_one_did() -> None:
    old = trained()
    run = on_ladder(old, Schedule.scales([1, 2, 4]), "x")
    first, second, _ = code(run)
    assert torch.equal(first, code(old)[0]) and torch.equal(second, code(old)[1])
    quantizer: Any = run.tokenizer.quantizer
    theirs: Any = old.tokenizer.quantizer
    assert torch.equal(quantizer.standard.white, theirs.standard.white[[0, 1, 3]])
    assert torch.equal(quantizer.phi[2].weight, theirs.phi[3].weight)
    assert len(theirs.phi) == 4 and old.recipe.schedule == OLD, "the run that was is untouched"


@pytest.mark.parametrize("ladder", [[1, 2, 4], [1, 2, 3, 3, 4]])
@pytest.mark.parametrize("changes", [{}, {"sharing": 4}, {"standardise": False, "blend": 0}])
def test_what_comes_out_is_built_by_its_own_recipe(
    ladder: list[int], changes: dict[str, Any]
) -> None:
    run = on_ladder(trained(**changes), Schedule.scales(ladder), "x")
    again = build(run.recipe.tokenizer, "tokenizer", device="cpu")
    again.load_state_dict(run.tokenizer.state_dict())
    twin = code(Run(run.recipe, again))
    assert all(torch.equal(a, b) for a, b in zip(code(run), twin, strict=True))


def test_single_cells_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^tokenizer.run=x makes whole scales, .* use a ladder"):
        on_ladder(trained(), Schedule.raster(4), "tokenizer.run=x")


def test_a_tokenizer_that_serves_every_schedule_stays_what_it_is() -> None:
    spec = {"_target_": "var.tokenizers.singlescale.VQ", "vocabulary": 8, "channels": 2}
    spec |= {"inner": 4, "width": 4, "multipliers": [1, 1], "blocks": 0, "groups": 2}
    run = Run(Recipe(spec, Schedule.raster(4)), build(spec, "tokenizer", device="cpu"))
    found = on_ladder(run, Schedule.raster(8), "x")
    assert found.tokenizer is run.tokenizer and found.recipe.schedule == Schedule.raster(8)
