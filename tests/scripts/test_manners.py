"""What all commands do alike in a shell: help, quiet, one line for a mistake, no bars in logs."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.installed import commands
from var.scripts import entry
from var.scripts.command import translated
from var.scripts.mistakes import settings, suggestion

MISTAKES = {
    "": "model must be given: say model=…",
    "modle=x": "there is no setting modle (did you mean model?)",
    "model=x guidance=2": "there is no setting guidance (did you mean sampling.guidance?)",
    "model=x sampling.top_q=1": "there is no setting sampling.top_q (did you mean sampling.top_",
    "model=x decodin=jacobi": "there is no setting decodin (did you mean decoding?)",
    "model=x xyz=1": "there is no setting xyz (--help and --cfg job list them)",
    "model=x cache=densse": "cache=densse: there is no such choice (did you mean dense?)",
    "model=x cache=quick": "cache=quick: there is no such choice (there are dense, scale, static)",
    "model=x decoding=collaborative": "decoding.closer, decoding.switch must be given: say",
    "model=x labels=[[": "labels=[[ cannot be read: say name=value, and put what has brackets",
    "model=x seed=1,2": "Ambiguous value for argument 'seed=1,2'",
    "model=x sampling.top_k=many": "sampling: top_k must be a number, or a list of them, got",
    "model=fashion-va": "there is no run folder and no model named fashion-va (did you mean fash",
    "model=x --quite": "unrecognized arguments: --quite (did you mean --quiet?)",
}


def ended(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the status with which a command ends."""
    monkeypatch.setattr(sys, "argv", [f"var-{name}", *words])
    with pytest.raises(SystemExit) as stop:
        getattr(entry, name)()
    return int(stop.value.code or 0)


def in_a_shell(line: str, place: Path, **where: object) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `sample` is the command."""
    call = "from var.scripts import entry; entry.sample()"
    root = str(Path(__file__).parents[2])
    known = {**os.environ, "PYTHONPATH": root, "PYTHON": sys.executable, "CALL": call}
    line = f'sample() {{ "$PYTHON" -c "$CALL" "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], env=known, cwd=place, text=True, check=False,
        **({"capture_output": True} | where),
    )  # type: ignore[call-overload]  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_with_a_remedy(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("sample", *words.split(), monkeypatch=monkeypatch) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"var-sample: error: {MISTAKES[words]}")
    assert text.count("\n") == 1


@pytest.mark.parametrize("name", [name.removeprefix("var-") for name in commands()])
def test_every_help_has_examples_settings_flags_and_statuses(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(name, "--help", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    home = "var.configs.bench" if name == "bench" else "var.configs"
    assert text.count(f"  var-{name} ") + text.count(f"  var-{name}\n") >= 2  # examples
    assert "--quiet" in text and "Ends with 0" in text and f"var-{name} -sc install=bash" in text
    top = {each for each in settings(name, home) if "." not in each} - _shared(home)
    assert not [each for each in sorted(top) if f"{each}=" not in text and f"{each}." not in text]


def _shared(home: str) -> set[str]:
    """Return the groups of all commands, of which a command's help names those that it has."""
    return (
        settings("compare", "var.configs") - {"reports", "out"} if home == "var.configs" else set()
    )


def test_help_and_completion_wait_for_no_torch(tmp_path: Path) -> None:
    call = "import sys; from var.scripts import entry; entry.sample()"
    check = "print('torch' in sys.modules)"
    program = f"import sys, atexit; atexit.register(lambda: {check}); {call}"
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for words in (["--help"], ["-sc", "query=bash"], ["model=x", "sead=1"]):
        known = {**where, "COMP_LINE": "var-sample -q 'labels=[0,1]' decoding="}
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=known, cwd=tmp_path, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.stdout.endswith("False\n"), done.stdout
        if "-sc" in words:
            assert "decoding=collaborative" in done.stdout


def test_a_log_gets_messages_and_no_bars_and_quiet_not_even_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TQDM_DISABLE", "VAR_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("VAR_LOG_LEVEL")
    words = ["var-sample", "model=digits-var", "labels=[0]"]
    for flags, lines in ([], 1), (["--quiet"], 0):
        monkeypatch.setattr(sys, "argv", [*words, *flags])
        entry.sample()
        out, err = capfd.readouterr()
        assert (out.count("\n"), err) == (lines, "")
        assert os.path.getsize("samples.png")
        os.remove("samples.png")


def test_a_terminal_gets_a_bar_and_no_colours(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    done = in_a_shell(
        "sample model=digits-var labels=[0]", tmp_path, capture_output=False, stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    text = os.read(ours, 10000).decode()
    assert done.returncode == 0 and "100%" in text and "\x1b[" not in text


def test_who_stops_reading_is_not_an_error(tmp_path: Path) -> None:
    done = in_a_shell("sample --help | head -1", tmp_path)
    assert done.stderr == "" and done.stdout.count("\n") == 1


def test_the_version_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("sample", "--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.startswith("var-toolkit 0.")


def test_flags_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TQDM_DISABLE", "VAR_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    assert translated(["-m", "a=1", "-q", "~b", "--cfg", "job"]) == [
        "a=1",
        "~b",
        "-m",
        "--cfg",
        "job",
    ]
    assert os.environ["TQDM_DISABLE"] == "1" and os.environ["VAR_LOG_LEVEL"] == "WARNING"


def test_a_quiet_sweep_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TQDM_DISABLE", "VAR_LOG_LEVEL", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    words = ["-m", "model=digits-var", "labels=[0]", "-q", "seed=0,1"]
    monkeypatch.setattr(sys, "argv", ["var-sample", *words])
    entry.sample()
    assert capfd.readouterr() == ("", "")
    assert {"samples-0.png", "samples-1.png"} <= {*os.listdir(tmp_path)}


def test_an_unknown_shell_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("sample", "-sc", "install=zshh", monkeypatch=monkeypatch) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "say -sc install=bash" in text


def test_completion_of_a_line_that_makes_no_sense_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", "var-sample 'labels=[[' --foo dec")
    assert ended("sample", "-sc", "query=bash", monkeypatch=monkeypatch)
    assert capsys.readouterr() == ("", "")


def test_suggestions_come_close_or_list_all() -> None:
    assert suggestion("x", ["b", "a"]) == " (there are a, b)"
    assert suggestion("steps", ["sampling.steps", "other"]) == " (did you mean sampling.steps?)"
