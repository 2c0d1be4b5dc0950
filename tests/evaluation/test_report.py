from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.reports import fd, report, stored
from var.errors import UserError
from var.evaluation.report import beside, differ, figure, read, row, table
from var.published import evaluation

METRIC = "FD-FashionMNISTCNN"


def of_var(**changes: Any) -> dict[str, Any]:
    """Return a report of var-d16 measured as it was published."""
    made = {
        "model": "var-d16",
        "reference": {
            "name": "VIRTUAL_imagenet256_labeled.npz",
            "images": 50_000,
            "sha256": "d" * 64,
        },
        "images": 50_000,
        "per_class": 50,
        "size": 256,
        "sampling": {"guidance": [1.0, 2.5], "top_k": 900, "top_p": 0.96},
        "metrics": {"FID": {"value": 3.53, "spread": 0.02}, "IS": {"value": 279.0, "spread": 3.0}},
    }
    return report(**(made | changes))


def test_a_stored_report_is_read(tmp_path: Path) -> None:
    assert read(stored(tmp_path / "run", report())) == report()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: measure again"),
        ("[]", "is no report of format 1"),
        ('{"format": 2}', "is no report of format 1"),
        ('{"format": 1, "kind": "generation"}', "is damaged, no model, images, metrics"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("metrics", [{"FID": {}}, {"FID": 3.0}, {"FID": {"value": "x"}}, [1]])
def test_a_report_with_odd_metrics_is_refused(tmp_path: Path, metrics: Any) -> None:
    with pytest.raises(UserError, match="is damaged, a metric has no value"):
        read(stored(tmp_path / "run", report(metrics=metrics)))


def test_a_report_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the report .*nowhere.json: No such file"):
        read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.31234, 0.0041, "0.312 ± 0.004"),
        (0.31234, 0.0012, "0.3123 ± 0.0012"),
        (301.49, 3.2, "301 ± 3"),
        (1234.4, 45.0, "1234 ± 45"),
        (3.5512, None, "3.551"),
        (1.0, 0.0, "1"),
    ],
)
def test_a_figure_has_the_digits_that_its_spread_makes_certain(
    value: float, spread: float | None, text: str
) -> None:
    assert figure({"value": value, "spread": spread}) == text


def test_a_row_has_settings_under_their_names_and_figures_with_their_number() -> None:
    cells = row(report())
    assert cells["reference"] == "fashion_mnist test"
    assert cells["decoding"] == "sequential" and cells["sampling.top_k"] == "0"
    assert cells["weights"] == "a" * 12
    assert cells[METRIC] == "0.312 ± 0.004 (10 000)"
    assert cells["images_per_second"] == 60.1


def test_what_all_rows_share_is_above_the_table() -> None:
    other = report(sampling={"guidance": [1.0, 2.5], "top_k": 600}, metrics=fd(0.35))
    above, below = table([report(), other]).split("\n\n")
    assert "model: fashion-var" in above and "sampling.guidance: [1.0, 2.5]" in above
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in below.splitlines()]
    assert lines[0] == ["sampling.top_k", METRIC, "images_per_second", "calls_per_batch"]
    assert lines[2][:2] == ["0", "0.312 ± 0.004 (10 000)"]
    assert lines[3][:2] == ["600", "0.350 ± 0.004 (10 000)"]


def test_a_setting_that_only_some_rows_have_is_a_column() -> None:
    still = report(kind="reconstruction", sampling=None, decoding=None, cache=None, per_class=None)
    head = table([report(), still]).split("\n\n")[1].splitlines()[0]
    assert "sampling.top_k" in head and "per_class" in head and "precision" not in head


def test_settings_stand_to_the_left_of_figures() -> None:
    other = report(metrics={"FID": {"value": 3.0}}, extra="of the second")
    head = table([report(), other]).split("\n\n")[1].splitlines()[0]
    names = [cell.strip() for cell in head.split("|")[1:-1]]
    assert names == ["extra", METRIC, "FID", "images_per_second", "calls_per_batch"]


def test_measured_as_published_it_agrees_or_not() -> None:
    text = beside(of_var(), evaluation("var-d16"))
    lines = [line for line in text.splitlines() if line.startswith(("| FID", "| IS"))]
    first, second = lines[0], next(line for line in lines if line.startswith("| IS"))
    for part in ("3.55", "VAR README", "3.53 ± 0.02 (50 000)", "| yes ", "| no "):
        assert part in first
    assert "280.4" in second and "279 ± 3" in second
    assert "no, +0.23" in text, "of the other source"
    assert "too large" not in text and "Settings differ" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 10_000, "per_class": 10}, "per_class 10 instead of 50"),
        ({"images": 10_000}, "FID comes out too large: 10 000 images are fewer than 50 000"),
        ({"size": 512}, "size 512 instead of 256"),
        ({"decoding": {"name": "jacobi"}}, "decoding.name jacobi instead of sequential"),
        ({"sampling": {"guidance": 4, "top_k": 900, "top_p": 0.96}}, r"[1.0, 5.0] instead of"),
        (
            {"reference": {"name": "a folder", "images": 50_000, "sha256": "e"}},
            "reference a folder instead of VIRTUAL_imagenet256_labeled.npz",
        ),
    ],
)
def test_what_was_done_differently_is_said(changes: dict[str, Any], said: str) -> None:
    assert said in beside(of_var(**changes), evaluation("var-d16"))


def test_another_precision_is_said_where_the_published_one_is_known() -> None:
    text = beside(of_var(model="flowar-s"), evaluation("flowar-s"))
    assert "precision fp32 instead of fp16" in text


def test_the_published_decoding_is_part_of_the_settings() -> None:
    published = evaluation("code-6")
    made = of_var(sampling=dict(published.sampling), precision="fp16")
    assert "decoding.switch" in beside(made, published)
    made["decoding"] = dict(published.decoding or {})
    assert "Settings differ" not in beside(made, published)


def test_a_tokenizer_is_held_against_as_many_images() -> None:
    made = report(kind="reconstruction", images=50_000, size=256, sampling=None)
    made["metrics"] = {"rFID": {"value": 2.2, "spread": 0.01}}
    text = beside(made, evaluation("llamagen-vq16"))
    assert "2.200 ± 0.010 (50 000) | yes    | no " in text
    text = beside(made | {"images": 10_000}, evaluation("llamagen-vq16"))
    assert "images 10000 instead of 50000" in text and "rFID comes out too large" in text


def test_what_a_report_does_not_say_is_unknown() -> None:
    text = beside(of_var(decoding=None, per_class=None), evaluation("var-d16"))
    assert "per_class unknown instead of 50; decoding.name unknown instead of sequential" in text
    text = beside(of_var(sampling=None), evaluation("var-d16"))
    assert 'sampling unknown instead of {"guidance": 1.5, "top_k": 900, "top_p": 0.96}.' in text


def test_reconstructions_are_not_held_against_samples() -> None:
    with pytest.raises(UserError, match="are of reconstruction, the report is of generation"):
        beside(report(), evaluation("llamagen-vq16"))


def test_a_clear_difference_is_told_and_a_small_one_is_not() -> None:
    assert differ(report(), report(metrics=fd(0.35))) == [
        f"{METRIC} differs: 0.312 ± 0.004 against 0.350 ± 0.004"
    ]
    assert differ(report(), report(metrics=fd(0.32))) == [
        f"{METRIC} cannot be told apart at 10 000 images: 0.312 ± 0.004 against 0.320 ± 0.004"
    ]


def test_the_spreads_of_both_count() -> None:
    edge = 1.96 * 0.005  # 3, 4, 5
    for beyond, differs in ((1.01, True), (0.99, False)):
        other = report(metrics=fd(0.312 + beyond * edge, 0.003))
        assert ("differs" in differ(report(), other)[0]) is differs


def test_without_a_spread_nothing_is_claimed() -> None:
    assert differ(report(), report(metrics=fd(0.35, None))) == [
        f"{METRIC}: 0.312 ± 0.004 against 0.35, of unknown spread"
    ]


def test_only_what_both_measured_is_compared() -> None:
    both = report(metrics=fd(0.35) | {"FID": {"value": 3.0, "spread": 0.1}})
    assert len(differ(report(), both)) == len(differ(both, report())) == 1
    with pytest.raises(UserError, match="no metric in common"):
        differ(report(), report(metrics={"FID": {"value": 3.0, "spread": 0.1}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 5000}, "images differs: 10 000 and 5 000"),
        ({"network": {"name": "FID", "weights": "c"}}, "network differs: FD-.* and FID c"),
        (
            {"reference": {"name": "fashion_mnist test", "images": 9_999, "sha256": "b" * 64}},
            "reference differs: fashion_mnist test 10000 bbbbbbbbbbbb and .* 9999",
        ),
    ],
)
def test_figures_of_different_scales_are_not_compared(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        differ(report(), report(**changes))
