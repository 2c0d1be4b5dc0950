"""Scaling laws: known ones are found again, runs are read, compute is spent well."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from tests.conftest import make_run
from var import scaling, store
from var.errors import UserError
from var.scaling import Law, Point
from var.store import Run

LAW = Law(floor=1.69, of_parameters=406.4, alpha=0.34, of_tokens=410.7, beta=0.28)
GRID = list(itertools.product((10**5, 10**6, 10**7, 10**8), (10**6, 10**7, 10**8, 10**9)))


def points(noise: float = 0.0) -> list[Point]:
    factors = np.exp(noise * np.random.default_rng(0).standard_normal(len(GRID)))
    return [
        Point(run=f"{n}", parameters=n, tokens=d, loss=LAW.loss(n, d) * float(factor))
        for (n, d), factor in zip(GRID, factors, strict=True)
    ]


def test_a_known_law_is_found_again() -> None:
    found = scaling.fit(points())
    for name, value in vars(LAW).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-3), name


def test_noise_of_half_a_percent_changes_little() -> None:
    found = scaling.fit(points(noise=0.005))
    assert found.alpha == pytest.approx(LAW.alpha, rel=0.1)
    assert found.beta == pytest.approx(LAW.beta, rel=0.1)
    assert found.loss(10**9, 10**10) == pytest.approx(LAW.loss(10**9, 10**10), rel=0.05)


def test_one_point_that_is_far_off_hardly_counts() -> None:
    given = points()
    odd = given[5]
    given[5] = Point(run="odd", parameters=odd.parameters, tokens=odd.tokens, loss=2 * odd.loss)
    found = scaling.fit(given)
    assert found.alpha == pytest.approx(LAW.alpha, rel=0.05)
    assert found.loss(10**9, 10**10) == pytest.approx(LAW.loss(10**9, 10**10), rel=0.01)


def test_compute_is_spent_where_the_loss_is_lowest() -> None:
    for compute in (1e12, 1e18):
        parameters, tokens = LAW.best(compute)
        assert 6 * parameters * tokens == pytest.approx(compute)
        for factor in (0.9, 1.1):
            other = LAW.loss(parameters * factor, tokens / factor)
            assert other > LAW.loss(parameters, tokens)


@pytest.mark.parametrize(
    "few",
    [
        points()[:5],
        [p for p in points() if p.parameters < 10**7],
        [p for p in points() if p.tokens < 10**8],
    ],
)
def test_too_few_points_are_refused(few: list[Point]) -> None:
    with pytest.raises(UserError, match=rf"needs 6 points .*; there are {len(few)} points"):
        scaling.fit(few)


def test_points_come_back_from_a_table(tmp_path: Path) -> None:
    given = [Point(run="a, b", parameters=12, tokens=34, loss=1.25)]
    scaling.write(tmp_path / "points.csv", given)
    assert scaling.read(tmp_path / "points.csv") == given
    assert given[0].compute == 6 * 12 * 34


def recorded(folder: Path, lines: list[dict[str, Any]], **kind: str) -> Path:
    """Make a run folder with records."""
    store.save(folder, make_run(**kind))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_read_in_stretches_of_equal_ratio(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": k, "images": 10 * k, "train/total": 100.0 / k} for k in range(1, 101)
    ]
    lines.insert(50, {"step": 50, "images": 500, "test/total": 7.0})
    folder = recorded(tmp_path / "small", lines)
    found = scaling.collect(folder, bins=4, after=0.1)
    assert [p.run for p in found] == ["small"] * 4
    assert sum(store.read_recipe(folder).schedule.sizes) == 21
    edges = [21 * 10 * 10 ** (1 + k / 4) for k in range(5)]
    for point, low, high in zip(found, edges[:-1], edges[1:], strict=True):
        assert low < point.tokens < high
        # The mean of 1 / k over a stretch is near that of its middle.
        assert point.loss == pytest.approx(100 / (point.tokens / 210), rel=0.05)
    assert [p.loss for p in scaling.collect(folder, loss="test/total")] == [7.0]


def test_parameters_are_those_of_matrices(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", [{"step": 1, "images": 8, "train/total": 3.0}])
    run = store.load(folder)
    (point,) = scaling.collect(folder)
    assert run.model is not None and run.recipe.backbone is not None
    # Per block: q, k, v and projection, two of the perceptron, a modulation of six parts.
    blocks, stem, norm, head = 2 * (4 + 8 + 6) * 32**2, 4 * 32, 2 * 32**2, 32 * 32
    assert (run.recipe.backbone["depth"], run.recipe.backbone["width"]) == (2, 32)
    assert point.parameters == scaling.count(run.model) == blocks + stem + norm + head


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"step": 1, "images": 8, "train/total": 3.0}], "has no test/total; there are: train/t"),
        ([], "has no test/total; there are: "),
    ],
)
def test_figures_that_are_not_there_are_named(
    tmp_path: Path, lines: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scaling.collect(recorded(tmp_path / "run", lines), loss="test/total")


def test_folders_of_other_kinds_are_refused(tmp_path: Path, tiny_run: Run) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        scaling.collect(tmp_path)
    store.save(tmp_path / "run", tiny_run)
    with pytest.raises(UserError, match="cannot read the figures of a run in .*metrics.jsonl"):
        scaling.collect(tmp_path / "run")


@pytest.mark.parametrize("name", ["scaling-digits", "scaling-fashion"])
def test_the_sweeps_are_of_several_sizes_at_a_constant_rate(name: str) -> None:
    with initialize_config_module("var.configs", version_base="1.3"):
        cfg = compose("train", [f"experiment={name}"], return_hydra_config=True)
    (swept,) = cfg.hydra.sweeper.params.items()
    widths = [int(width) for width in swept[1].split(",")]
    assert swept[0] == "backbone.width" and len(widths) >= 4
    assert all(width % cfg.backbone.heads == 0 for width in widths)
    assert cfg.name == f"{name}-{cfg.backbone.width}"  # a folder for each
    assert (cfg.trainer.rate_kind, cfg.trainer.final_rate) == ("lin00", 1.0)
    if name == "scaling-fashion":  # no image is seen twice
        assert cfg.trainer.steps * cfg.trainer.batch_size <= 60_000
