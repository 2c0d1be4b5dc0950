"""What happens to a run: signals, a full disk, bad numbers, other settings; and what it records."""

import errno
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.training.words import SCALES, VAR, Words, forget, run, train
from var import store
from var.errors import UserError
from var.training.parallel import accelerator
from var.training.records import Records
from var.training.settings import Settings
from var.training.stopping import Stopped


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    forget()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's run of six steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("base")
    forget()
    run(folder)
    return folder / "run"


@pytest.fixture
def generator(base: Path) -> Words:
    """The words that train a generator."""
    return (*VAR, f"tokenizer.run={base}")


def at_step(number: int, act: Callable[[], Any]) -> Callable[..., None]:
    """Return `Records.step` that acts in a step of the run."""
    original, steps = Records.step, 0

    def step(self: Records) -> None:
        nonlocal steps
        original(self)
        steps += 1
        if steps == number:
            act()

    return step


@pytest.mark.parametrize("asking", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_end_saves_itself_and_goes_on_to_the_last_bit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asking: signal.Signals
) -> None:
    before = signal.getsignal(asking)
    with monkeypatch.context() as patch:
        patch.setattr(Records, "step", at_step(2, lambda: os.kill(os.getpid(), asking)))
        with pytest.raises(Stopped) as stop:
            run(tmp_path)
    assert stop.value.code == 128 + asking
    assert signal.getsignal(asking) is before
    assert checkpoints(tmp_path / "run") == ["step-00000002"]
    assert store.load(tmp_path / "run").tokenizer is not None
    assert alike(run(tmp_path), weights(base))
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_ends_the_run_in_one_line_and_costs_nothing_but_the_last_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr("var.training.checkpoint.save_file", failing(full, after=3))
        with pytest.raises(UserError, match=r"No space left.*last good .*step-00000003\. Make roo"):
            run(tmp_path)
    assert os.listdir(tmp_path / "run/checkpoints") == ["step-00000003"]
    assert alike(run(tmp_path), weights(base))


def test_a_disk_that_is_full_for_the_records_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Records, "_record", failing(full, after=4))
    with pytest.raises(UserError, match=r"cannot write to .* at step 5; .*step-00000003.*No space"):
        run(tmp_path)


def failing(error: Exception, after: int) -> Callable[..., None]:
    """Return what works so many times, and then no more."""
    from safetensors.torch import save_file

    calls = 0

    def act(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        if isinstance(args[0], dict):
            save_file(*args)

    return act


def test_a_step_without_a_finite_gradient_is_left_out_if_that_is_tolerated(
    generator: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("var.training.generator.TeacherForcing.forward", bad({2, 4}))
    with caplog.at_level(logging.WARNING):
        last = run(tmp_path, "trainer.tolerate=1", base=generator)
    assert all(value.isfinite().all() for value in last.values())
    assert [r.message.split(" is")[0] for r in caplog.records] == ["step 2", "step 4"]


@pytest.mark.parametrize(("tolerate", "step"), [(0, 2), (1, 3)])
def test_more_than_is_tolerated_ends_the_run_at_the_step_that_it_names(
    generator: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tolerate: int, step: int
) -> None:
    monkeypatch.setattr("var.training.generator.TeacherForcing.forward", bad({2, 3}))
    with pytest.raises(UserError, match=f"not finite at step {step}; last good checkpoint: none"):
        run(
            tmp_path,
            f"trainer.tolerate={tolerate}",
            "trainer.log_every=5",
            "trainer.checkpoint_every=5",
            base=generator,
        )


def bad(steps: set[int]) -> Callable[..., Tensor]:
    """Return a forward pass of a generator's training whose losses are no numbers in some steps."""
    from var.training.generator import TeacherForcing

    original, calls = TeacherForcing.forward, -2  # the memory it needs is estimated by two

    def forward(self: Any, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return original(self, *args) * (torch.nan if calls in steps else 1)

    return forward


def test_the_tensors_that_do_not_fit_a_checkpoint_are_named(base: Path, tmp_path: Path) -> None:
    there = base / "checkpoints/step-00000003"
    with pytest.raises(UserError, match=r"quantizer\.codebook\.weight \(16, 4\), not \(8, 4\)"):
        run(tmp_path, f"resume={there}", "tokenizer.vocabulary=8")


def test_going_on_by_other_settings_is_told(base: Path, tmp_path: Path, caplog: Any) -> None:
    there = base / "checkpoints/step-00000003"
    with caplog.at_level(logging.WARNING):
        run(tmp_path, f"resume={there}", "trainer.batch_size=4")
    assert "trainer.batch_size is 4, was 8" in caplog.text


def test_what_was_recorded_after_the_checkpoint_is_forgotten(base: Path, tmp_path: Path) -> None:
    first = records(base)
    assert [line["images"] for line in first] == [8, 16, 24, 32, 40, 48]
    assert {"seconds", "train/total", "train/gradient_norm", "rate"} <= first[0].keys()
    run(tmp_path, "trainer.steps=4")
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "imag')  # killed while it wrote
    run(tmp_path)
    again = records(tmp_path / "run")
    assert [line["step"] for line in again] == [1, 2, 3, 4, 5, 6]
    assert again[-1]["seconds"] > again[3]["seconds"]


def test_where_there_is_no_terminal_a_line_tells_that_the_run_is_alive(
    tmp_path: Path, caplog: Any
) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path)
    assert "step 6 of 6: loss" in caplog.text
    assert "images/s, 00:00 left" in caplog.text


def test_the_average_is_judged_every_so_often(generator: Words, tmp_path: Path) -> None:
    every = ("trainer.evaluate_every=3", "evaluation.images=20", "evaluation.batch_size=8")
    run(tmp_path, *every)
    judged = [line for line in records(tmp_path / "run") if "test/psnr" in line]
    assert [line["step"] for line in judged] == [3, 6]
    assert {"test/usage/scale0", "test/perplexity/scale2"} <= judged[0].keys()
    forget()
    run(tmp_path, *every, base=generator)
    judged = [line for line in records(tmp_path / "var") if "test/loss" in line]
    assert [line["step"] for line in judged] == [3, 6]
    assert judged[1]["test/loss"] < judged[0]["test/loss"]


def test_images_that_are_no_images_are_reported(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / f"data/train/{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (9 * number,) * 3).save(path)
    path.write_bytes(path.read_bytes()[:40])
    words = ("data=image_folder", f"data.root={tmp_path}/data", "data.size=16", "data.workers=0")
    odd = ("~data.test", "name=run", "tokenizer.vocabulary=16", "tokenizer.width=8")
    train(tmp_path, *words, *odd, "tokenizer.groups=4", *SCALES)
    header, *rows = (tmp_path / "run/unusable.csv").read_text().splitlines()
    assert header == "path,reason"
    assert len(rows) == 1
    assert "train/1/11.png" in rows[0]


def test_runs_of_a_sweep_follow_each_other_in_one_process(base: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", "trainer.precision=bf16", "trainer.steps=1")
    assert alike(run(tmp_path / "b"), weights(base))


@pytest.mark.parametrize(
    "word", ["trainer.seed=-1", "trainer.rate_kind=lin1", "trainer.ema=2.0", "trainer.parallel=no"]
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        run(tmp_path, word)


def test_a_run_that_nobody_tracks_is_not_warned_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    accelerator(Settings(steps=1, batch_size=1, cpu=True, trackers=()), tmp_path)
    assert not [warning for warning in recwarn if "tracker" in str(warning.message)]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints/step-00000006/model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
