from pathlib import Path

import pytest

from tests.evaluation.reports import fd, report, stored
from var.errors import UserError
from var.evaluation.compare import compare


def test_reports_become_a_table_sentences_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [
        stored(tmp_path / "a", report()),
        stored(tmp_path / "b", report(metrics=fd(0.35), seed=1)),
    ]
    text = compare(paths, tmp_path / "out")
    assert (tmp_path / "out" / "table.md").read_text() == text
    assert (tmp_path / "out" / "frontier.png").is_file()
    assert "| b      | 1    | 0.350 ± 0.004 (10 000)" in text
    assert "## b and a\n\n- FD-FashionMNISTCNN differs: 0.350 ± 0.004 against 0.312" in text
    assert "![distance over speed](frontier.png)" in text


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "a", report())
    monkeypatch.chdir(tmp_path)
    assert "frontier" not in compare([path])
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_without_speed_there_is_no_picture(tmp_path: Path) -> None:
    compare([stored(tmp_path / "a", report(speed=None))], tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["table.md"]


def test_what_cannot_be_compared_is_said_where_it_would_be(tmp_path: Path) -> None:
    few = report(images=10)
    text = compare([stored(tmp_path / "a", report()), stored(tmp_path / "b", few)])
    assert "## b and a\n\nNot possible: figures of the reports cannot be compared, images" in text


def test_published_figures_are_shown_for_a_released_checkpoint(tmp_path: Path) -> None:
    made = report(model="var-d16", metrics={"FID": {"value": 3.5, "spread": 0.1}})
    text = compare([stored(tmp_path / "a", made)])
    assert "## a and what is published of var-d16" in text and "VAR README" in text


def test_reports_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    paths = [stored(tmp_path / "a", report()), stored(tmp_path / "x" / "a", report(seed=1))]
    text = compare(paths)
    assert all(str(path) in text for path in paths)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UserError, match="no report to compare"):
        compare([])
