"""VAR alone: its learned scale, its stochastic depth, its initialisation, its logits."""

import math

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tiny import features
from var.models.var import VAR
from var.nn.adaln import Modulation
from var.sampling import Guide

PUBLISHED = {"vocabulary": 4096, "channels": 32, "classes": 1000}


def canvas_vectors(model: VAR, rows: int = 2) -> Tensor:
    return tiny.vectors(rows, model.schedule.starts[-1])


def test_the_learned_scale_stops_at_100() -> None:
    model = tiny.model(depth=1)
    x = canvas_vectors(model)
    log = model.blocks[0].attention.scale.log.data
    log.fill_(math.log(100))
    at_limit = features(model, x, [0, 1])
    log.fill_(9.0)
    assert torch.equal(features(model, x, [0, 1]), at_limit)
    log.fill_(1.0)
    assert not torch.allclose(features(model, x, [0, 1]), at_limit)


def test_stochastic_depth_acts_in_training_only_and_on_whole_rows() -> None:
    model = tiny.model(drop_path=0.5)
    plain = tiny.model()
    x = canvas_vectors(model)
    assert torch.equal(features(model, x, [0, 1]), features(plain, x, [0, 1]))
    torch.manual_seed(0)
    branches: list[Tensor] = []
    model.train().blocks[-1].path.register_forward_hook(lambda *args: branches.append(args[2]))
    for _ in range(8):
        features(model, x, [0, 1])
    dropped = [bool((row == 0).all()) for branch in branches for row in branch]
    assert any(dropped) and not all(dropped)


@pytest.mark.parametrize("shared", [False, True])
def test_new_weights_have_the_published_sizes(shared: bool) -> None:
    torch.manual_seed(0)
    width, depth = 96, 2
    model = VAR(
        depth=depth, width=width, heads=4, ladder=[1, 2], shared_adaln=shared, init_gate=0.01,
        init_modulation=0.4, init_head=0.1, **{**PUBLISHED, "vocabulary": 64, "classes": 9},
    )  # fmt: skip
    std = (3 * width) ** -0.5
    block = model.blocks[0]
    sizes = {
        block.attention.qkv.weight: std,
        block.attention.proj.weight: std / (2 * depth) ** 0.5,
        block.mlp.rise.weight: std,
        block.mlp.fall.weight: std / (2 * depth) ** 0.5,
        model.stem.linear.weight: std,
        model.stem.positions: std,
        model.modulation.weight: std * 0.4,
        model.head.linear.weight: std * 0.1,
    }
    if shared:
        sizes[block.modulation.table[:2]] = width**-0.5 * 0.01
        sizes[block.modulation.table[2:]] = width**-0.5 * 0.4
        assert isinstance(model.shared, Modulation)
        sizes[model.shared.weight] = std
    else:
        sizes[block.modulation.weight[: 2 * width]] = std * 0.01
        sizes[block.modulation.weight[2 * width :]] = std * 0.4
    for weight, expected in sizes.items():
        assert weight.std().item() == pytest.approx(expected, rel=0.2)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all((bias == 0).all() for bias in biases)
    assert block.attention.scale.log.tolist() == pytest.approx([math.log(4)] * 4)


def test_logits_take_part_in_guidance_row_by_row() -> None:
    model = tiny.model()
    x, span = canvas_vectors(model, rows=4), model.schedule[:]
    h = features(model, x, [0, 1, -1, -1])
    both = model.head(h, span, Guide(scale=1, rows=1)).logits
    guided = model.head(h, span, Guide(scale=3, rows=2)).logits
    torch.testing.assert_close(guided, both[2:] + 3 * (both[:2] - both[2:]))
