import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.reports import fd, report
from var.errors import UserError
from var.evaluation.frontier import Point, distance, frontier, plot

# Of few values, so that there are ties.
POINTS = st.lists(st.tuples(*[st.integers(1, 6).map(float)] * 2), max_size=12)


def dominates(a: Point, b: Point) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_what_is_not_dominated_is_the_frontier(points: list[Point]) -> None:
    best = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    found = frontier(points)
    assert sorted(found) == best
    assert [points[i][0] for i in found] == sorted((points[i][0] for i in best), reverse=True)


def fast(rate: float, value: float, **changes: object) -> dict:
    return report(speed={"images_per_second": rate}, metrics=fd(value), **changes)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reports = [fast(10, 0.3), fast(100, 0.4), fast(50, 0.5, model="fashion-raster")]
    reports[1]["metrics"] = fd(0.4, None)
    plot(tmp_path / "new" / "frontier.png", reports, ["a", "b", "c"])
    assert (tmp_path / "new" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'var-toolkit\[bench\]'"):
        plot(tmp_path / "frontier.png", [fast(10, 0.3)], ["a"])


def test_the_distance_is_one_that_all_have() -> None:
    both = {"FD-Other": {"value": 1.0}, **fd(0.3)}
    assert distance([report(metrics=both), report()]) == "FD-FashionMNISTCNN"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (report(images=10), "images differs"),
        (report(speed=None), "the report of fashion-var has no speed: leave it out"),
        (report(device="cuda"), "speeds of cpu and cuda cannot be compared"),
        (report(metrics={"IS": {"value": 3.0}}), "share no Frechet distance"),
    ],
)
def test_points_that_do_not_belong_together_are_refused(other: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distance([report(), other])
