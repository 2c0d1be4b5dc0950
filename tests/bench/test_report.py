from pathlib import Path

import pytest

from var.atomic import replace, write
from var.bench.machine import Rate
from var.bench.report import brief, comma_separated, markdown, plot
from var.errors import UserError

ROWS = [
    {"row": "a", "batch": 2, "ms": 12.5, "head ms": 2.5, "head ratio": 1.0, "fd": None},
    {"row": "b", "batch": 2, "note": "out of memory"},
]


def test_the_report_says_on_what_and_how_and_what() -> None:
    text = markdown(
        machine="abacus",
        rates=[Rate("linear", "fp32", 2.5e12)],
        settings="seed: 3\n",
        rows=ROWS,
        scales=[{"row": "a", "scale": 0, "head ms": 1.0}],
        baseline="same",
    )
    for part in ("abacus", "| linear  | fp32      | 2.5 ", "seed: 3", "out of memory", "| a   | 0"):
        assert part in text
    assert "batch, model and precision" in text
    assert " fd " not in text, "a column in which nothing stands"


def test_a_file_of_figures_leaves_out_what_is_not_known() -> None:
    lines = comma_separated(ROWS).splitlines()
    assert lines == [
        "row,batch,ms,head ms,head ratio,note",
        "a,2,12.5,2.5,1.0,",
        "b,2,,,,out of memory",
    ]


def test_the_screen_gets_fewer_figures() -> None:
    assert list(brief(ROWS[0])) == ["row", "batch", "ms", "head ms", "fd"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.md"
    write(path, "first")

    def fail(part: Path) -> None:
        part.write_text("half of it")
        raise OSError("no space left")

    with pytest.raises(UserError, match="no space left"):
        replace(path, fail)
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_plot_shows_the_rows_that_were_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(tmp_path / "bench.png", ROWS)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
