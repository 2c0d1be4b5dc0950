"""Steps that are captured for many places: what a graph would read, computed step by step."""

from typing import Any

import pytest
import torch

from tests import tiny
from var.cache.static import Static
from var.condition import Condition
from var.models import replay
from var.models.raster import Raster
from var.models.replay import rolling

GRID = 6
CONDITIONS = {
    "classes": Condition(torch.tensor([0, 3, -1])),
    "texts": Condition.of_text(
        torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]),
    ),
}


def model(name: str) -> Raster:
    texts = {"classes": None, "text": 5, "text_length": 4, "kv_heads": 1}
    return tiny.raster(grid=GRID, **(texts if name == "texts" else {}))


@pytest.mark.parametrize("name", CONDITIONS)
@torch.no_grad()
def test_spans_that_move_are_read_as_those_that_stay(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_STRIDE", 8)
    backbone, condition = model(name), CONDITIONS[name]
    x, cache = tiny.ids(3, GRID**2), None
    whole = backbone(x, backbone.schedule[:], condition)
    cache = backbone.new_cache(Static)
    for other in (True, False):  # what an earlier run has left behind does not count
        tokens = tiny.ids(3, GRID**2, seed=9) if other else x
        cache.rewind(0)
        found, start = [], 0
        for length in (3, 1, 1, 8, 5, 1, 17):
            span: Any = backbone.schedule[start : start + length]
            placed = rolling(span, x.device) if start else span
            found.append(backbone(tokens[:, span.positions], placed, condition, cache))
            cache.advance(span)
            start += length
    tiny.close(torch.cat(found, dim=1), whole)


def test_only_spans_of_a_raster_behind_its_first_token_move_and_only_where_there_is_room() -> None:
    backbone, ladder = model("classes"), tiny.model()
    cache, short = backbone.new_cache(Static), backbone.new_cache(Static, groups=20)
    for each in (cache, short):
        k = torch.zeros(3, 2, 1, 8)
        each.layers[0].extend(k, k, k, backbone.schedule[:1])
    assert replay._rolls(backbone.schedule[5:6], cache)
    assert not replay._rolls(backbone.schedule[:1], cache)
    assert not replay._rolls(backbone.schedule[5:6], short)  # it reaches as far as the stride
    assert not replay._rolls(ladder.schedule[1:2], ladder.new_cache(Static))


def test_spans_that_move_are_told_apart() -> None:
    span = tiny.raster(grid=GRID).schedule[5:6]
    one, other = rolling(span, torch.device("cpu")), rolling(span, torch.device("cpu"))
    assert one == one and one != other and len({one, other}) == 2
