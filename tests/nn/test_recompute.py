"""Checkpointed blocks: the same losses and gradients, bit for bit, and less that is kept."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.tiny import Family
from var.nn.recompute import recompute
from var.random import Rng


def step(family: Family, model: Any) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return a loss, the gradients, and the bytes that were kept for them, weights aside."""
    span, own = model.schedule[:], {id(p) for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        h = family.features(model, family.shown(2, len(span)), [0, 1])
        loss = model.head.loss(h, family.tokens(2, len(span)), span, Rng([0, 1])).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())


@tiny.variants
def test_nothing_changes_but_what_is_kept(family: Family) -> None:
    model, plain = family.model().train(), family.model().train()
    recompute(model.blocks)
    loss, gradients, kept = step(family, model)
    expected, truth, more = step(family, plain)
    assert torch.equal(loss, expected) and kept < more
    assert all(torch.equal(gradients[name], truth[name]) for name in truth)


def test_what_is_dropped_is_dropped_again() -> None:
    settings = {"drop": 0.3, "attention_drop": 0.2, "drop_path": 0.4}
    model, plain = (tiny.model(**settings).train() for _ in range(2))
    recompute(model.blocks)
    family = tiny.FAMILIES["var"]
    loss, gradients, _ = step(family, model)
    expected, truth, _ = step(family, plain)
    assert torch.equal(loss, expected)
    assert all(torch.equal(gradients[name], truth[name]) for name in truth)
    torch.manual_seed(1)
    assert not torch.equal(loss, family.features(plain, family.shown(2, 30), [0, 1]).mean())


@tiny.families
def test_all_repeated_blocks_are_named(family: Family) -> None:
    model = family.model()
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    assert {*model.blocks} == {block for blocks in lists for block in blocks}


@pytest.mark.parametrize("first", [True, False])
def test_it_composes_with_compiled_halves(first: bool) -> None:
    family = tiny.FAMILIES["var"]
    model, plain = family.model().train(), family.model().train()
    if first:
        recompute(model.blocks)
    model.compile(backend="aot_eager")
    if not first:
        recompute(model.blocks)
    loss, gradients, _ = step(family, model)
    expected, truth, _ = step(family, plain)
    tiny.close(loss, expected)
    for name, gradient in truth.items():
        tiny.close(gradients[name], gradient)


def test_a_copy_is_one_of_its_own() -> None:
    family = tiny.FAMILIES["var"]
    model = family.model().train()
    recompute(model.blocks)
    twin = copy.deepcopy(model)
    nn.init.zeros_(model.blocks[0].mlp.fall.weight)
    loss, _, _ = step(family, twin)
    assert torch.equal(loss, step(family, family.model().train())[0])
    assert not torch.equal(loss, step(family, model)[0])
