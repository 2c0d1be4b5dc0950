"""The training loop: resuming, accumulation, several processes, sudden death, bad losses."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

from var import store
from var.errors import UserError
from var.scripts.train import main
from var.tokenizers.losses import Objective
from var.training.tokenizer import TokenizerTask

TINY = [
    "experiment=digits-tokenizer",
    "name=run",
    "schedule=[1,2,4]",
    "tokenizer.vocabulary=16",
    "tokenizer.channels=4",
    "tokenizer.width=8",
    "tokenizer.groups=4",
    "data.train.size=16",
    "trainer.batch_size=8",
    "trainer.steps=6",
    "trainer.warmup_steps=2",
    "trainer.log_every=1",
    "trainer.preview_every=0",
    "trainer.checkpoint_every=3",
    "trainer.cpu=true",
    "task.revive=2",
]
GENERATOR = [
    "experiment=digits-var",
    "name=var",
    "schedule=[1,2,4]",
    "backbone.depth=1",
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.drop=0",
    *[o for o in TINY if o.startswith("trainer.")],
]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def run(folder: Path, *overrides: str, base: list[str] = TINY) -> dict[str, torch.Tensor]:
    """Train by the real configs; return the weights of the newest checkpoint."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("train", overrides=[*base, f"runs={folder}", *overrides]))
    name = "var" if base is GENERATOR else "run"
    newest = sorted((folder / name / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted tokenizer run."""
    folder = tmp_path_factory.mktemp("whole")
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    run(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "checkpoints" / "step-00000006" / "model.safetensors")


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does_to_the_last_bit(
    whole: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("var.training.checkpoint.Checkpoints.save", after(1, stop))
        with pytest.raises(Stop):
            run(tmp_path)
    assert equal(run(tmp_path), weights(whole))
    averaged = [store.load(folder / "run").tokenizer.state_dict() for folder in (tmp_path, whole)]
    assert equal(*averaged)


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


def test_a_generator_run_resumes_to_the_last_bit_and_makes_images(
    whole: Path, tmp_path: Path
) -> None:
    base = [f"tokenizer.run={whole / 'run'}", "backbone.drop=0.1"]
    full = run(tmp_path / "a", *base, base=GENERATOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("var.training.checkpoint.Checkpoints.save", after(1, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", *base, base=GENERATOR)
    assert equal(run(tmp_path / "b", *base, base=GENERATOR), full)
    import var

    assert var.load(tmp_path / "b" / "var")(labels=[0, "7"], seed=1).shape == (2, 3, 16, 16)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_half_batches_twice_make_the_same_step_as_whole_ones(whole: Path, tmp_path: Path) -> None:
    base = [f"tokenizer.run={whole / 'run'}", "trainer.steps=3", "trainer.seed=1"]
    once = run(tmp_path / "a", *base, base=GENERATOR)
    twice = run(tmp_path / "b", *base, "trainer.accumulation=2", base=GENERATOR)
    assert once.keys() == twice.keys()
    for key in once:
        torch.testing.assert_close(once[key], twice[key], atol=2e-4, rtol=0)


@pytest.mark.parametrize("base", [TINY, GENERATOR], ids=["tokenizer", "generator"])
def test_two_processes_take_the_steps_of_one(whole: Path, tmp_path: Path, base: list[str]) -> None:
    name = "run" if base is TINY else "var"
    extra = [] if base is TINY else [f"tokenizer.run={whole / 'run'}"]
    extra += ["trainer.steps=3", "task.revive=0"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    overrides = [*(o for o in base if o.split("=")[0] not in str(extra)), *extra]
    command = [sys.executable, *launch, "-m", "var.scripts.train", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, f"runs={tmp_path / 'two'}"], check=True, env=environment, capture_output=True
    )
    one = run(tmp_path / "one", *extra, base=base)
    two = load_file(tmp_path / "two" / name / "checkpoints/step-00000003/model.safetensors")
    assert one.keys() == two.keys()
    for key in one:
        # Relative too: whitening matrices hold entries of about 50.
        torch.testing.assert_close(one[key], two[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_few_steps_lower_the_loss(tmp_path: Path, precision: str) -> None:
    before = run(tmp_path, f"trainer.precision={precision}", "trainer.steps=30")
    assert all(value.isfinite().all() for value in before.values())
    tokenizer = store.load(tmp_path / "run")
    from var.data.images import digits

    image = digits(size=16).__getitems__(range(64))[0]
    schedule = tokenizer.recipe.schedule
    with torch.no_grad():
        again, _ = tokenizer.tokenizer(image, schedule)
    assert (again - image).square().mean() < image.var()


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_checkpoint(
    whole: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "var.training.generator.TeacherForcing.forward",
            lambda *_: torch.tensor([[torch.nan]], requires_grad=True),
        )
        with pytest.raises(UserError, match=r"not finite at step 1 .*trainer\.rate"):
            run(tmp_path, f"tokenizer.run={whole / 'run'}", base=GENERATOR)
    assert not list((tmp_path / "var/checkpoints").glob("step-*"))


def test_a_checkpoint_of_another_configuration_is_refused(whole: Path, tmp_path: Path) -> None:
    checkpoint = whole / "run/checkpoints/step-00000003"
    with pytest.raises(UserError, match="cannot resume from .*step-00000003.*configuration"):
        run(tmp_path, f"resume={checkpoint}", "tokenizer.channels=8")


def test_never_resuming_protects_an_existing_run(whole: Path) -> None:
    with pytest.raises(UserError, match="resume=auto, or set another name"):
        run(whole, "resume=never")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accumulation=3", r"trainer\.batch_size=8 .*trainer\.accumulation=3"),
        ("trainer.batch_size=4000", "batch of 4000 is larger than the data set of 1500"),
        ("trainer.log_every=0", r"trainer\.log_every=0"),
        ("trainer.keep=0", r"trainer\.keep=0"),
        ("trainer.rate_kind=step", r"trainer\.rate_kind=step"),
        ("trainer.precision=fp16", "needs a GPU"),
        ("trainer.precision=int8", "fp32, bf16 or fp16"),
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
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    old = tmp_path / "run/checkpoints/step-00000003"
    run(tmp_path, f"resume={old}", "trainer.steps=4")
    assert sorted(numbers(tmp_path / "run/checkpoints")) == [3, 4]


def test_a_damaged_checkpoint_is_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-00000006/model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot resume from .*step-00000006"):
        run(tmp_path, "trainer.steps=9")


def test_what_an_experiment_says_of_sampling_is_kept(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, f"tokenizer.run={whole / 'run'}", "trainer.steps=1", base=GENERATOR)
    assert store.load(tmp_path / "var").recipe.sampling.scales == (1.0, 2.0)


def test_everything_a_task_computes_with_follows_it_to_a_device(whole: Path) -> None:
    base = store.load(whole / "run")
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
    overrides = [*TINY, f"runs={tmp_path}", "trainer.checkpoint_every=1", "trainer.steps=400"]
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
