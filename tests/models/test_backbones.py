"""What every backbone must pass: who sees what, labels, ladders, precision, compilation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.tiny import Family, close
from var.condition import Condition
from var.random import Rng
from var.sampling import Guide
from var.schedule import Schedule


def shown(family: Family, model: Any, rows: int = 2) -> Tensor:
    """Return what a canvas might show of images, (R, L, C) or (R, L)."""
    return family.shown(rows, model.schedule.starts[-1])


def error(guess: Tensor, truth: Tensor) -> float:
    """Return the root of the mean squared error over that of the truth."""
    wrong, whole = (each.detach().square().mean() for each in (guess - truth, truth))
    return float((wrong / whole).sqrt())


@tiny.variants
def test_no_position_sees_a_later_group_and_all_see_the_earlier(family: Family) -> None:
    model, x = family.smooth()
    schedule = model.schedule
    h = family.features(model, x, [0, 1])
    for k in range(len(schedule)):
        here = schedule[k : k + 1].positions
        (grad,) = torch.autograd.grad(h[:, here].sum(), x, retain_graph=True)
        reach = grad.abs().sum(dim=(0, 2)) > 0
        first = schedule.sizes[0]  # the class stands in place of x there
        assert reach[first : here.stop].all() and not reach[here.stop :].any()
        assert not reach[:first].any()


@tiny.families
def test_the_loss_of_a_group_is_about_nothing_but_this_group(family: Family) -> None:
    model = family.model()
    schedule, span = model.schedule, model.schedule[:]
    h = family.features(model, shown(family, model), [0, 1]).detach().requires_grad_()
    loss = model.head.loss(h, family.tokens(2, len(span)), span, Rng([0, 1]))
    for k in range(len(schedule)):
        here = schedule[k : k + 1].positions
        (grad,) = torch.autograd.grad(loss[:, here].sum(), h, retain_graph=True)
        reach = (grad != 0).any(dim=(0, 2))
        assert reach[here].all() and reach.sum() == here.stop - here.start


@tiny.variants
def test_images_do_not_see_each_other(family: Family) -> None:
    model = family.model()
    x, span = shown(family, model, rows=3), model.schedule[:]
    tokens = family.tokens(3, len(span))
    together = family.features(model, x, [0, 1, 2])
    losses = model.head.loss(together, tokens, span, Rng([5, 6, 7]))
    for i in range(3):
        here = slice(i, i + 1)
        alone = family.features(model, x[here], [i])
        close(alone, together[here])
        close(model.head.loss(alone, tokens[here], span, Rng([5 + i])), losses[here])


@tiny.families
def test_minus_one_and_the_number_of_classes_are_the_null_class(family: Family) -> None:
    model = family.model()
    x = shown(family, model)
    null = family.features(model, x, [-1, -1])
    assert torch.equal(null, family.features(model, x, [tiny.CLASSES] * 2))
    assert not torch.allclose(null, family.features(model, x, [tiny.CLASSES - 1] * 2))


@tiny.families
@pytest.mark.parametrize("label", [-2, tiny.CLASSES + 1])
def test_labels_out_of_range_are_refused(family: Family, label: int) -> None:
    model = family.model()
    with pytest.raises(
        ValueError, match=rf"labels must lie in -1..{tiny.CLASSES}, got \[0, {label}\]"
    ):
        family.features(model, shown(family, model), [0, label])


@tiny.families
# The second one has groups of the same sizes.
@pytest.mark.parametrize("ladder", [[1, 2, 4], [1, (4, 1), 3, 4]])
def test_another_ladder_is_refused(family: Family, ladder: list) -> None:
    model, span = family.model(), Schedule.scales(ladder)[:]
    with pytest.raises(ValueError, match="built for the schedule"):
        model(family.shown(2, len(span)), span, Condition(torch.tensor([0, 1])))


@tiny.families
def test_heads_must_divide_the_width(family: Family) -> None:
    with pytest.raises(ValueError, match="5 heads do not divide the width 32"):
        family.model(heads=5)


@tiny.variants
def test_bfloat16_weights_stay_near_float32(family: Family) -> None:
    exact, rounded = family.model(), family.model().bfloat16()
    x, kinds = shown(family, exact), set()
    for part in rounded.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    h, guess = family.features(exact, x, [0, 1]), family.features(rounded, x, [0, 1])
    assert kinds == {torch.bfloat16}, "products in full would cost several times as much"
    assert error(guess, h) < 0.03  # bfloat16 has 8 bits: 0.004 per rounding


@tiny.variants
def test_autocast_stays_near_float32_and_trains(family: Family) -> None:
    model = family.model().train()
    span = model.schedule[:]
    x, tokens = shown(family, model), family.tokens(2, len(span))
    h = family.features(model, x, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        guess = family.features(model, x, [0, 1])
        loss = model.head.loss(guess, tokens, span, Rng([0, 1]))
    assert error(guess, h) < 0.03 and loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@tiny.families
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_blocks_compile_in_one_piece(family: Family) -> None:
    model, compiled = family.model(), family.model()
    torch.compiler.reset()
    blocks = [part for part in compiled.modules() if hasattr(part, "before")]
    for block in blocks:
        block.compile(backend="eager", fullgraph=True)
    x, span, guide = shown(family, model), model.schedule[:1], Guide(scale=2.0, rows=2)
    with torch.no_grad():
        ours, theirs = family.features(compiled, x, [0, -1]), family.features(model, x, [0, -1])
        close(ours, theirs)
        heads = [each.head(theirs[:, :1], span, guide) for each in (compiled, model)]
        close(*(head.shaped(family.guided).sample() for head in heads))
    assert len(blocks) >= 2
