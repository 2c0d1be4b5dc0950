"""Tables of pictures."""

import pytest
import torch

from var.errors import UserError
from var.gallery import gallery

pyplot = pytest.importorskip("matplotlib.pyplot")


def test_every_picture_stands_below_its_name_and_beside_it() -> None:
    levels = torch.arange(6).view(2, 3, 1, 1, 1).expand(2, 3, 3, 4, 8) / 10
    axes = gallery(list(levels), rows=["a", "b"], columns=["x", "y", "z"], title="all")
    shown = axes.images[0].get_array()
    heads = {
        tick.get_text(): int(at)
        for tick, at in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
    }
    names = {
        tick.get_text(): int(at)
        for tick, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    found = [[int(shown[y, x, 0]) for x in heads.values()] for y in names.values()]
    assert (list(names), list(heads)) == (["a", "b"], ["x", "y", "z"])
    assert found == [[0, 26, 51], [76, 102, 128]]
    assert axes.get_title() == "all"
    pyplot.close(axes.figure)


def test_what_is_no_table_is_refused() -> None:
    row = torch.zeros(3, 3, 4, 4)
    with pytest.raises(UserError, match="alike"):
        gallery([row, row[:2]])
    with pytest.raises(UserError, match="alike"):
        gallery([])
    with pytest.raises(UserError, match="2 rows, and 1 names"):
        gallery([row, row], rows=["a"])
