"""What is M-VAR's own: scales attend to themselves only, and hand a state on."""

import pytest
import torch
from torch import nn

from tests import tiny
from tests.tiny import close
from var.cache.base import nbytes
from var.cache.dense import Dense
from var.cache.scale import Scale
from var.cache.scale_budget import Budget
from var.cache.static import Static
from var.condition import Condition
from var.decoding.jacobi import Jacobi
from var.errors import UserError
from var.models.mvar import MVAR
from var.schedule import Schedule, Span
from var.training.optim import groups

FAMILY = tiny.FAMILIES["mvar"]
X = FAMILY.shown(2, tiny.SCHEDULE.starts[-1])
CONDITION = Condition(torch.tensor([0, -1]))
KINDS = pytest.mark.parametrize("kind", [Dense, Static])


def without_mamba(model: MVAR) -> MVAR:
    with torch.no_grad():
        for block in model.blocks:
            block.mamba.out_proj.weight.zero_()
    return model


@torch.no_grad()
def test_without_mamba_scales_know_nothing_of_each_other() -> None:
    model = without_mamba(tiny.model(MVAR))
    h = model(X, tiny.SCHEDULE[:], CONDITION)
    for scale in range(1, len(tiny.SCHEDULE)):
        here = tiny.SCHEDULE[scale : scale + 1].positions
        others = X.clone()
        others[:, : here.start] *= -1
        others[:, here.stop :] *= -1
        close(model(others, tiny.SCHEDULE[:], CONDITION)[:, here], h[:, here])


@torch.no_grad()
def test_inside_a_scale_positions_see_each_other_both_ways() -> None:
    model, other = without_mamba(tiny.model(MVAR)), X.clone()
    last = tiny.SCHEDULE.starts[-1] - 1
    other[:, last] *= -1
    change = (
        model(X, tiny.SCHEDULE[:], CONDITION) - model(other, tiny.SCHEDULE[:], CONDITION)
    ).abs()
    assert (change[:, tiny.SCHEDULE.starts[-2] :] > 1e-4).any(dim=-1).all()


@torch.no_grad()
def test_coarser_scales_reach_finer_ones_through_mamba() -> None:
    model, other = tiny.model(MVAR), X.clone()
    other[:, 1:5] *= -1  # the second scale
    change = (
        model(X, tiny.SCHEDULE[:], CONDITION) - model(other, tiny.SCHEDULE[:], CONDITION)
    ).abs()
    assert change[:, :1].max() == 0 and (change[:, 5:] > 0).any(dim=-1).all()


@torch.no_grad()
def test_scales_are_apart_in_training_and_in_evaluation_alike() -> None:
    model = tiny.model(MVAR)
    training, evaluation = (
        model.train(mode)(X, tiny.SCHEDULE[:], CONDITION) for mode in (True, False)
    )
    assert torch.equal(training, evaluation)


@torch.no_grad()
def test_no_mask_is_ever_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dense mask was asked for")

    monkeypatch.setattr(Span, "mask", refuse)
    model, cache = tiny.model(MVAR), None
    model(X, tiny.SCHEDULE[:], CONDITION)
    cache = model.new_cache()
    model(X[:, :14], tiny.SCHEDULE[:3], CONDITION, cache)
    cache.advance(tiny.SCHEDULE[:3])
    model(X[:, 14:], tiny.SCHEDULE[3:], CONDITION, cache)


@KINDS
@torch.no_grad()
def test_what_is_remembered_does_not_grow(kind: type[Dense] | type[Static]) -> None:
    held: list[int] = []
    for ladder in ((1, 2, 3), (1, 2, 3, 4, 6)):
        schedule = Schedule.scales(ladder)
        model = tiny.model(MVAR, ladder=ladder)
        cache, x = model.new_cache(kind), FAMILY.shown(2, schedule.starts[-1])
        for k in range(len(schedule) - 1):
            span = schedule[k : k + 1]
            model(x[:, span.positions], span, CONDITION, cache)
            cache.advance(span)
            held.append(nbytes(cache))
    assert len(held) == 6 and set(held) == {FAMILY.held(2, 3)}


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_close_to_float32(
    kind: type[Dense] | type[Static], dtype: torch.dtype
) -> None:
    """To 5 % of the features' spread, though the state is handed on from scale to scale."""
    exact = tiny.model(MVAR)(X, tiny.SCHEDULE[:], CONDITION)
    model = tiny.model(MVAR).to(dtype)
    cache, parts = model.new_cache(kind), []
    for k in range(len(tiny.SCHEDULE)):
        span = tiny.SCHEDULE[k : k + 1]
        parts.append(model(X[:, span.positions], span, CONDITION, cache))
        cache.advance(span)
    off = (torch.cat(parts, dim=1).float() - exact).abs()
    assert off.mean() < 0.05 * exact.std() and parts[0].dtype == dtype


def test_caches_and_decodings_that_are_about_keys_are_refused() -> None:
    model = tiny.model(MVAR)
    budget = Budget.shared(tiny.SCHEDULE, 2, 0.5)

    def scale(layers: int, groups: int | None = None, *, recurrent: bool = False) -> Scale:
        return Scale(layers, groups, budget=budget, recurrent=recurrent)

    with pytest.raises(
        UserError, match="cache scale is about keys, .*: use cache=static or cache=dense"
    ):
        model.new_cache(scale)
    with pytest.raises(UserError, match="remembers a state, .* use decoding=sequential"):
        Jacobi(model)


def test_new_weights_are_those_of_the_specification() -> None:
    """Section 5: which gates are small, what Mamba begins with."""
    torch.manual_seed(0)
    size = {"depth": 4, "width": 128, "heads": 2, "vocabulary": 8, "channels": 4, "classes": 3}
    model = MVAR(**size, ladder=(1, 2), init_gate=1e-3, init_modulation=0.5)
    std = (3 * 128) ** -0.5
    block = model.blocks[1]
    assert isinstance(block.modulation, nn.Linear)
    spreads = [part.std().item() for part in block.modulation.weight.chunk(9)]
    assert spreads == pytest.approx([1e-3 * std] * 2 + [0.5 * std] * 7, rel=0.05)
    mamba = block.mamba
    assert mamba.in_proj.weight.std().item() == pytest.approx(std, rel=0.05)
    assert mamba.out_proj.weight.std().item() == pytest.approx(std, rel=0.05)
    assert block.attention.proj.weight.std().item() == pytest.approx(std / 8**0.5, rel=0.05)
    assert mamba.conv1d.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert mamba.conv1d.bias is not None and not mamba.conv1d.bias.any()
    steps = nn.functional.softplus(mamba.dt_bias)
    assert (steps >= 1e-4).all() and (steps <= 0.1 + 1e-6).all() and steps.std() > 0
    assert (mamba.A_log.exp() >= 1).all() and (mamba.A_log.exp() <= 16).all()
    assert (mamba.D == 1).all() and (mamba.norm.weight == 1).all()


def test_which_weights_decay_is_that_of_the_specification() -> None:
    names = {bool(group["weight_decay"]): group["names"] for group in groups(tiny.model(MVAR), 0.1)}
    mamba = {
        decays: {name[15:] for name in found if name.startswith("blocks.0.mamba.")}
        for decays, found in names.items()
    }
    assert mamba[True] == {"in_proj.weight", "out_proj.weight", "conv1d.weight"}
    assert mamba[False] == {"A_log", "D", "dt_bias", "norm.weight", "conv1d.bias"}
    assert "stem.classes.weight" in names[True]


@torch.no_grad()
def test_a_state_that_a_replayed_graph_wrote_is_read_by_the_steps_after_it() -> None:
    """Replayed steps write where the cache's room is, and the program does not see them."""
    model, (first, second) = tiny.model(MVAR), (tiny.SCHEDULE[:1], tiny.SCHEDULE[1:2])
    used, other = model.new_cache(Static), model.new_cache(Static)
    for cache in (used, other):
        model(X[:, first.positions], first, CONDITION, cache)
        cache.advance(first)
    expected = model(X[:, second.positions], second, CONDITION, other)
    written = [t.clone() for memory in used.layers for t in memory.tensors()]
    model(X[:, second.positions], second, CONDITION, used)  # to be stale in the next run
    used.rewind(0)
    rooms = [t for memory in used.layers for t in memory.tensors()]
    for room, tensor in zip(rooms, written, strict=True):
        room.copy_(tensor)  # what a replay of the first step does
    used.advance(first)
    assert torch.equal(model(X[:, second.positions], second, CONDITION, used), expected)
