"""FlowAR alone: its initialisation, its widths and heads, the extent of grids, dropout."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.tiny import SCHEDULE, close, features
from var.cache.static import Static
from var.condition import Condition
from var.models.flowar import FlowAR
from var.sampling import Guide, Sampling


def shown() -> Tensor:
    return tiny.vectors(2, SCHEDULE.starts[-1])


def drawn(model: FlowAR, group: int) -> Tensor:
    """Return the likeliest tokens (2, L, C) of a group, given random features."""
    span, rng = SCHEDULE[group : group + 1], torch.Generator().manual_seed(0)
    h = torch.randn(2, len(span), 32, generator=rng)
    prediction = model.head(h, span, Guide(scale=1, rows=1))
    return prediction.shaped(Sampling(steps=2)).sample().detach()


@pytest.mark.parametrize("cross", [False, True])
def test_new_weights_are_drawn_as_published(cross: bool) -> None:
    torch.manual_seed(0)
    model = FlowAR(
        channels=8, classes=30, ladder=[1, 2, 4], width=48, encoder_depth=1, decoder_depth=1,
        heads=2, head_depth=1, head_width=32, cross=cross,
    )  # fmt: skip
    seen: set[nn.Parameter] = set()
    for part in model.modules():
        own = dict(part.named_parameters(recurse=False))
        if isinstance(part, nn.Linear):
            bound = math.sqrt(6 / sum(part.weight.shape))
            assert 0.9 * bound < part.weight.abs().max() <= bound
            assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert part.bias is None or not part.bias.any()
        elif isinstance(part, nn.RMSNorm):
            assert part.weight.eq(1).all()
        else:  # classes, and places before encoder, decoder and head
            for table in own.values():
                assert table.std().item() == pytest.approx(0.02, rel=0.1)
        seen |= set(own.values())
    assert seen == set(model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_heads": 3}, "3 heads do not divide the width 16"),
        ({"decoder_heads": 5}, "5 heads do not divide the width 32"),
        ({"heads": 16}, "16 heads do not divide the width 32 into multiples of 4 channels"),
    ],
)
def test_heads_must_divide_their_widths(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.flowar(**changes)


def test_the_decoder_may_have_other_heads() -> None:
    model, same = tiny.flowar(decoder_heads=4), tiny.flowar()
    x, condition, cache = shown(), Condition(torch.tensor([0, 1])), model.new_cache(Static)
    with torch.no_grad():
        at_once = model(x, SCHEDULE[:], condition, cache)
    encoder, decoder = (memory.tensors()[0].shape for memory in cache.layers)
    assert encoder == (2, 2, 2, 30, 16) and decoder == (2, 2, 4, 30, 8)
    close(at_once, features(model, x, [0, 1]).detach())
    assert not torch.allclose(at_once, features(same, x, [0, 1]), atol=1e-3)


@pytest.mark.parametrize("cross", [False, True])
def test_grids_are_stretched_to_the_extent_in_backbone_and_head(cross: bool) -> None:
    model, other = tiny.flowar(cross=cross), tiny.flowar(cross=cross, extent=4.0)
    first, rest = SCHEDULE[:1].positions, SCHEDULE[1:].positions
    ours, theirs = (features(each, shown(), [0, 1]) for each in (model, other))
    close(ours[:, first], theirs[:, first])  # a single cell lies at 0 in any grid
    assert not torch.isclose(ours[:, rest], theirs[:, rest], atol=1e-4).all(dim=-1).any()
    close(drawn(model, 0), drawn(other, 0))
    assert not torch.allclose(drawn(model, 2), drawn(other, 2), atol=1e-4)


@pytest.mark.parametrize("kind", ["drop", "attention_drop"])
def test_dropout_acts_in_training_only_and_never_in_the_head(kind: str) -> None:
    model, plain = tiny.flowar(**{kind: 0.5}), tiny.flowar()
    expected = features(plain, shown(), [0, 1])
    assert torch.equal(features(model, shown(), [0, 1]), expected)
    torch.manual_seed(0)
    first, again = (features(model.train(), shown(), [0, 1]) for _ in range(2))
    assert not torch.allclose(first, again, atol=1e-3)
    assert not torch.allclose(first, expected, atol=1e-3)
    assert torch.equal(drawn(model, 2), drawn(plain, 2))
