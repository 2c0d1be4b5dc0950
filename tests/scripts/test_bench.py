"""`var-bench` on a tiny run, through the real config."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file

from tests.conftest import make_run
from var import store
from var.bench import machine
from var.bench.machine import Rate
from var.bench.measure import Bench
from var.errors import UserError
from var.metrics.features import SmallClassifier
from var.scripts.bench import main


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, on a machine whose rates are known."""
    rates = [Rate("linear", "fp32", 1e12), Rate("linear", "bf16", 2e12)]
    monkeypatch.setattr(machine, "measure", lambda device: rates)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*overrides: str) -> None:
    """Run the command on the composed config."""
    fixed = ["progress=false", "device=cpu", "repeats=1", "warmup=0"]
    with initialize_config_module("var.configs.bench", version_base="1.3"):
        main(compose("bench", overrides=[*fixed, *overrides]))


def figures(name: str = "bench/bench.csv") -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_ends_in_report_figures_and_plot(run_folder: Path, place: Path) -> None:
    pytest.importorskip("matplotlib")
    bench(
        f"model={run_folder}", "naive=true", "batch=[1,2]", "cache=[static,dense]", "greedy=true",
        "warmup=1", "repeats=2",
    )  # fmt: skip
    names = {"bench.md", "bench.csv", "scales.csv", "bench.png"}
    assert {path.name for path in (place / "bench").iterdir()} == names
    rows = figures()
    assert [row["batch"] for row in rows] == 3 * ["1"] + 3 * ["2"]
    assert {row["agreement"] for row in rows} == {"1.0"}
    assert all(float(row[f"{stage} ms"]) > 0 for row in rows for stage in ("head", "decode"))
    assert len(figures("bench/scales.csv")) == 6 * 3
    text = Path("bench/bench.md").read_text()
    assert "PyTorch" in text and "naive fp32" in text and "repeats: 2" in text


def test_without_matplotlib_everything_else_is_there(
    run_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bench(f"model={run_folder}", "out=here")
    assert {path.name for path in (place / "here").iterdir()} == {
        "bench.md", "bench.csv", "scales.csv"
    }  # fmt: skip
    assert "pip install 'var-toolkit[bench]'" in caplog.text


def test_another_implementation_is_a_row_among_others(
    run_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "elsewhere.py").write_text(
        "import torch\ndef draw(labels, seeds, device):\n"
        "    return torch.full((len(labels), 3, 8, 8), 0.5, device=device)\n"
    )
    monkeypatch.syspath_prepend(place)
    bench(f"model={run_folder}", "rows=[{call:elsewhere:draw,label:theirs}]")
    ours, theirs = figures()
    assert theirs["row"] == "theirs" and float(theirs["ms"]) > 0
    assert float(theirs["psnr dB"]) > 0 and theirs["backbone ms"] == theirs["agreement"] == ""
    assert float(ours["backbone ms"]) > 0


def test_a_row_that_fails_is_named_and_the_others_are_reported(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = f"{{name:collaborative,closer:{run_folder},switch:9}}"
    bench(f"model={run_folder}", f"decoding=[sequential,{extra}]")
    good, bad = figures()
    assert float(good["ms"]) > 0 and bad["ms"] == "" and "switch=9" in bad["note"]
    assert "switch=9" in caplog.text


def test_what_was_measured_before_an_interruption_is_kept(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Bench.round

    def interrupted(self: Bench, number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt
        whole(self, number)

    monkeypatch.setattr(Bench, "round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(f"model={run_folder}", "repeats=3")
    assert float(figures()[0]["ms"]) > 0


def test_the_distance_to_the_baseline_is_measured_on_request(place: Path) -> None:
    store.save(place / "run", make_run())
    net = SmallClassifier(mean=[0.3], deviation=[0.3]).state_dict()
    save_file({k.removeprefix("layers."): v for k, v in net.items()}, place / "net.safetensors")
    bench(
        "model=run", "precision=[fp32,bf16]", "batch=3", "fd.number=5",
        "fd.features.path=net.safetensors",
    )  # fmt: skip
    base, half = figures()
    assert base["fd"] == "" and float(half["fd"]) < 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baseline=best", "baseline=best: use batch or same"),
        ("repeats=0", "repeats=0"),
        ("seed=-1", "seed=-1"),
        ("fd.number=5", "fd.features.path=FILE"),
        ("out=/dev/null/here", "cannot write out=/dev/null/here"),
        ("sampling.top_k=-1", "top_k"),
        ("cache=[quantum]", "row .*: unknown cache 'quantum'"),
        ("model=[nothing-such]", "nothing-such"),
        ("labels=[zebra]", "zebra"),
        ("labels=[]", "nothing to draw"),
        ("decoding=[{name:collaborative,closer:nothing-such,switch:1}]", "nothing-such"),
    ],
)
def test_bad_input_is_named(run_folder: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench(f"model={run_folder}", override)


def test_a_bench_of_failures_fails(run_folder: Path) -> None:
    extra = f"{{name:collaborative,closer:{run_folder},switch:9}}"
    with pytest.raises(UserError, match="row .*: switch=9"):
        bench(f"model={run_folder}", f"decoding=[{extra}]")


def test_help_shows_the_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["var-bench", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "var-bench model=[random/var-d16]" in capsys.readouterr().out


@pytest.mark.gpu
def test_a_gpu_is_measured_as_well(run_folder: Path) -> None:
    bench(f"model={run_folder}", "device=cuda", "precision=[fp32,bf16]", "naive=true")
    assert all(float(row["peak MB"]) > 0 for row in figures())
    assert torch.cuda.is_available()


def test_training_steps_are_a_mode_of_their_own(run_folder: Path, place: Path) -> None:
    bench(f"model={run_folder}", "mode=train", "batch=[1,2]", "naive=true", "repeats=2")
    assert {path.name for path in (place / "bench").iterdir()} == {"train.md", "train.csv"}
    rows = figures("bench/train.csv")
    assert [row["row"].split()[-2] for row in rows] == 2 * ["naive", "plain", "checkpointing"]
    assert all(abs(float(row["loss difference"])) < 1e-5 for row in rows)
    with pytest.raises(UserError, match="mode=sampling: use sample or train"):
        bench(f"model={run_folder}", "mode=sampling")
