"""Several processes: they take the steps of one, each with all weights or with a share of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training import words
from tests.training.words import CODES, FLOWAR, GRID, LATENTS, MVAR, RASTER, VAR, Words, name, run

PAIRS = {"var": CODES, "mvar": CODES, "flowar": LATENTS, "raster": GRID}
JUDGED = (
    *GRID,
    "task.revive=0",
    "tokenizer.entropy=0",  # of the whole batch, which no process has
    "objective=adversarial",
    "~objective.perceptual",
    "objective.adversarial.adaptive=true",
    "objective.adversarial.weight=2",
    "objective.adversarial.start=2",
    "objective.adversarial.discriminator.norm=group",
    "objective.adversarial.discriminator.width=8",
    "objective.adversarial.discriminator.layers=1",
)
GENERATORS = {"var": VAR, "mvar": MVAR, "flowar": FLOWAR, "raster": RASTER}
FSDP = "trainer.parallel=fsdp"


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Forget the precision and number of processes of the last test's run."""
    words.forget()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Words]:
    """The words of six steps of each kind of run."""
    folder = tmp_path_factory.mktemp("base")
    # No code is revived, by one process; latents are followed fast, by what all of them see.
    made = {"codes": (*CODES, "task.revive=0"), "latents": (*LATENTS, "task.share=0.5")}
    made["judged"] = JUDGED
    for kind, generator in GENERATORS.items():
        base = folder / str(list(PAIRS.values()).index(PAIRS[kind]))
        if not base.exists():
            words.forget()
            run(base, "trainer.steps=1", base=PAIRS[kind])
        made[kind] = (*generator, f"tokenizer.run={base / 'run'}", "trainer.clip=0.5")
    return made


@pytest.fixture(scope="module")
def single(jobs: dict[str, Words], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each run, by one process."""
    folder = tmp_path_factory.mktemp("one")
    for kind, each in jobs.items():
        words.forget()
        run(folder / kind, base=each)
    return folder


@pytest.fixture(scope="module")
def doubled(jobs: dict[str, Words], single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each run by two processes, which are started once for all."""
    folder = tmp_path_factory.mktemp("two")
    todo = {kind: each for kind, each in jobs.items() if kind != "mvar"}
    todo |= {f"{kind}-fsdp": (*jobs[kind], FSDP) for kind in GENERATORS}
    for kind, more in {"var": "trainer.accumulation=2", "flowar": FSDP}.items():
        half = folder / f"{kind}-resumed" / kind
        shutil.copytree(single / kind / kind, half)
        shutil.rmtree(half / "checkpoints/step-00000006")
        todo[f"{kind}-resumed"] = (*jobs[kind], more)
    listed = [[str(folder / kind), *each] for kind, each in todo.items()]
    (folder / "jobs.json").write_text(json.dumps(listed))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [sys.executable, *launch, "-m", words.__name__, str(folder / "jobs.json")]
    root, environment = Path(__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=root, capture_output=True)
    return folder


def weights(folder: Path, kind: str, jobs: dict[str, Words]) -> dict[str, Tensor]:
    path = folder / name(jobs[kind]) / "checkpoints/step-00000006"
    parts = ("model", "average", "optimizer")
    return {
        f"{part}: {key}": value
        for part in parts
        for key, value in load_file(path / f"{part}.safetensors").items()
    }


def losses(folder: Path, kind: str, jobs: dict[str, Words]) -> list[float]:
    lines = (folder / name(jobs[kind]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/total"] for line in lines]


RUNS = ["codes", "latents", "judged", "var", "flowar", "raster"]
RUNS += ["var-fsdp", "mvar-fsdp", "flowar-fsdp", "raster-fsdp", "var-resumed", "flowar-resumed"]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_take_the_steps_of_one(
    doubled: Path, single: Path, jobs: dict[str, Words], run: str
) -> None:
    kind = run.partition("-")[0]
    one, two = (losses(f, kind, jobs) for f in (single / kind, doubled / run))
    assert len(one) == 6
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)
    one, two = (weights(f, kind, jobs) for f in (single / kind, doubled / run))
    assert one.keys() == two.keys()
    for key in one:
        # Relative too: whitening matrices hold entries of about 50.
        torch.testing.assert_close(two[key], one[key], atol=2e-3, rtol=1e-3, msg=key)
