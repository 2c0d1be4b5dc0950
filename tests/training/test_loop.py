"""The training loop: resuming, accumulation, several processes, sudden death, bad losses."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import var
from tests.training.words import (
    CODES,
    FLOWAR,
    GRID,
    LATENTS,
    MVAR,
    RASTER,
    VAR,
    Words,
    forget,
    name,
    run,
)
from var import store
from var.data.images import digits
from var.errors import UserError
from var.tokenizers.losses import Objective
from var.training.tokenizer import TokenizerTask

Whole = Callable[..., Path]
KINDS = {"codes": CODES, "latents": LATENTS, "grid": GRID}
TOKENIZERS = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
PAIRS = [(VAR, CODES), (MVAR, CODES), (FLOWAR, LATENTS), (RASTER, GRID)]
GENERATORS = pytest.mark.parametrize(
    ("generator", "tokenizer"), PAIRS, ids=["var", "mvar", "flowar", "raster"]
)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    forget()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What trains a tokenizer without interruption, once, and returns its run folder."""

    @cache
    def trained(tokenizer: Words = CODES) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        run(folder, base=tokenizer)
        return folder / "run"

    return trained


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "step-00000006" / "model.safetensors")


@TOKENIZERS
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does_to_the_last_bit(
    whole: Whole, tmp_path: Path, tokenizer: Words
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("var.training.checkpoint.Checkpoints.save", after(1, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, base=tokenizer)
    assert equal(run(tmp_path, base=tokenizer), weights(whole(tokenizer)))
    folders = (tmp_path / "run", whole(tokenizer))
    assert equal(*(store.load(folder).tokenizer.state_dict() for folder in folders))


def after(count: int, act: Any) -> Any:
    """Return `Checkpoints.save` that acts once `count` checkpoints are written."""
    from var.training.checkpoint import Checkpoints

    original, calls = Checkpoints.save, 0

    def save(self: Any, *args: Any) -> Path:
        nonlocal calls
        path, calls = original(self, *args), calls + 1
        if calls == count:
            act()
        return path

    return save


@GENERATORS
def test_a_generator_run_resumes_to_the_last_bit_and_makes_images(
    whole: Whole, tmp_path: Path, generator: Words, tokenizer: Words
) -> None:
    base = [f"tokenizer.run={whole(tokenizer)}", "backbone.drop=0.1"]
    full = run(tmp_path / "a", *base, base=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("var.training.checkpoint.Checkpoints.save", after(1, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", *base, base=generator)
    assert equal(run(tmp_path / "b", *base, base=generator), full)
    pipe = var.load(tmp_path / "b" / name(generator))
    assert pipe(labels=[0, "7"], seed=1).shape == (2, 3, 16, 16)


def _interrupt() -> None:
    raise KeyboardInterrupt


@GENERATORS
def test_half_batches_twice_make_the_same_step_as_whole_ones(
    whole: Whole, tmp_path: Path, generator: Words, tokenizer: Words
) -> None:
    base = [f"tokenizer.run={whole(tokenizer)}", "trainer.steps=3", "trainer.seed=1"]
    once = run(tmp_path / "a", *base, base=generator)
    twice = run(tmp_path / "b", *base, "trainer.accumulation=2", base=generator)
    assert once.keys() == twice.keys()
    for key in once:
        torch.testing.assert_close(once[key], twice[key], atol=2e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@TOKENIZERS
def test_a_few_steps_lower_the_loss(tmp_path: Path, tokenizer: Words, precision: str) -> None:
    last = run(tmp_path, f"trainer.precision={precision}", "trainer.steps=30", base=tokenizer)
    assert all(value.isfinite().all() for value in last.values())
    trained = store.load(tmp_path / "run")
    image, schedule = digits(size=16).__getitems__(range(64))[0], trained.recipe.schedule
    module: Any = trained.tokenizer
    with torch.no_grad():
        canvas = module.blank(64, schedule).write(*module.encode(image, schedule))
        assert (module.decode(canvas) - image).square().mean() < image.var()


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_checkpoint(
    whole: Whole, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "var.training.generator.TeacherForcing.forward",
            lambda *_: torch.tensor([[torch.nan]], requires_grad=True),
        )
        with pytest.raises(UserError, match=r"not finite at step 1; .*trainer\.rate"):
            run(tmp_path, f"tokenizer.run={whole()}", base=VAR)
    assert not list((tmp_path / "var/checkpoints").glob("step-*"))


def test_a_checkpoint_of_another_configuration_is_refused(whole: Whole, tmp_path: Path) -> None:
    checkpoint = whole() / "checkpoints/step-00000003"
    with pytest.raises(UserError, match="cannot resume from .*step-00000003.*configuration"):
        run(tmp_path, f"resume={checkpoint}", "tokenizer.channels=8")


def test_never_resuming_protects_an_existing_run(whole: Whole) -> None:
    with pytest.raises(UserError, match="resume=auto, or set another name"):
        run(whole().parent, "resume=never")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accumulation=3", r"trainer\.batch_size=8 .*trainer\.accumulation=3"),
        ("trainer.batch_size=4000", "batch of 4000 is larger than the data set of 1500"),
        ("trainer.log_every=0", r"trainer\.log_every=0"),
        ("trainer.keep=0", r"trainer\.keep=0"),
        ("trainer.rate_kind=step", r"trainer\.rate_kind=step"),
        ("trainer.precision=fp16", "needs a GPU"),
        ("trainer.precision=int8", "fp32 or bf16 or fp16"),
        ("schedule=[1,2,3]", r"ends on a grid of \(3, 3\).*4 cells a side"),
        ("tokenizer.groups=3", "cannot be built"),
        ("resume=nowhere", "resume=nowhere is not a checkpoint"),
        ("teacher.run=other", r"teacher\.run is for generators"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, override)


def test_an_older_checkpoint_that_is_resumed_by_name_makes_the_newer_ones_void(
    whole: Whole, tmp_path: Path
) -> None:
    shutil.copytree(whole(), tmp_path / "run")
    old = tmp_path / "run/checkpoints/step-00000003"
    run(tmp_path, f"resume={old}", "trainer.steps=4")
    assert sorted(numbers(tmp_path / "run/checkpoints")) == [3, 4]


def test_a_damaged_checkpoint_is_told_in_one_line(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole(), tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-00000006/model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot resume from .*step-00000006"):
        run(tmp_path, "trainer.steps=9")


def test_what_an_experiment_says_of_sampling_is_kept(whole: Whole, tmp_path: Path) -> None:
    run(tmp_path, f"tokenizer.run={whole()}", "trainer.steps=1", base=VAR)
    assert store.load(tmp_path / "var").recipe.sampling.scales == (1.0, 2.0)


def test_everything_a_task_computes_with_follows_it_to_a_device(whole: Whole) -> None:
    base = store.load(whole())
    task = TokenizerTask(
        tokenizer=base.tokenizer,
        objective=Objective({}),
        schedule=base.recipe.schedule,
        sample=torch.zeros(1, 3, 16, 16),
    )
    task.to(torch.device("meta"))
    held = [task.health.window, task.health.since, *task.module.state_dict().values()]
    assert all(tensor.is_meta for tensor in held)


def test_a_killed_run_leaves_whole_checkpoints_and_resumes(tmp_path: Path) -> None:
    overrides = [*CODES, f"runs={tmp_path}", "trainer.checkpoint_every=1", "trainer.steps=400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "var.scripts.train", *overrides]
    folder, reached = tmp_path / "run" / "checkpoints", 0
    chance = random.Random(0)
    for wait in (chance.random() for _ in range(3)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(numbers(folder)) > 0 and max(numbers(folder)) > reached, process)  # noqa: B023
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = max(numbers(folder))
        for path in folder.glob("step-*"):
            assert load_file(path / "model.safetensors") and (path / "progress.json").is_file()
            assert torch.load(path / "extra.pt", weights_only=True)
        assert store.load(tmp_path / "run").tokenizer is not None
    run(tmp_path, f"trainer.steps={reached + 1}")
    assert max(numbers(folder)) == reached + 1


def numbers(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in folder.glob("step-*")]


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds; fail if the process ends before."""
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.05)
