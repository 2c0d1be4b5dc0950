"""Runs on a Slurm cluster: processes that find each other, jobs that are queued again."""

import subprocess
from pathlib import Path

import hydra.utils
import pytest
from hydra import compose, initialize_config_module

from var.scripts.slurm import adopt, first_host

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}


def test_a_process_of_a_step_learns_its_place() -> None:
    environment = dict(STEP)
    adopt(environment)
    assert {key: environment[key] for key in environment.keys() - STEP.keys()} == {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "18456",
    }


def test_what_is_set_already_stays() -> None:
    environment = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"}
    adopt(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "5000")
    assert environment["RANK"] == "11"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"},  # a batch script
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "RANK": "0"},
    ],
    ids=["elsewhere", "batch", "alone", "launched"],
)
def test_nothing_happens_where_srun_did_not_start_several(environment: dict[str, str]) -> None:
    before = dict(environment)
    adopt(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[01-04]", "n01"),
        ("n[3,5-6]-ib,m1", "n3-ib"),
        ("r[1-2]n[03-04]", "r1n03"),
        ("a.b-c,n[1-2]", "a.b-c"),
    ],
)
def test_the_first_host_is_found_in_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_launcher_asks_for_a_process_for_each_gpu_and_warns_in_time() -> None:
    words = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=4"]
    with initialize_config_module("var.configs", version_base="1.3"):
        launcher = compose("train", words, return_hydra_config=True).hydra.launcher
    assert launcher.tasks_per_node == 4
    assert launcher.additional_parameters == {"signal": "USR1@300", "requeue": True}
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert launcher.keys() <= {"_target_", *known()}
    assert hydra.utils.get_class(launcher._target_)


def known() -> set[str]:
    """Return what submitit can be told of a Slurm job, in the launcher's words."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
    from submitit.slurm.slurm import SlurmExecutor

    return {*vars(SlurmQueueConf()), *SlurmExecutor._valid_parameters()}


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (138, True), (143, False)])
def test_a_job_is_queued_again_if_its_time_was_up(tmp_path: Path, status: int, again: bool) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    with initialize_config_module("var.configs", version_base="1.3"):
        cfg = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    script = "\n".join([f"sh -c 'exit {status}'", "", "# teardown", *cfg.hydra.launcher.teardown])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash", "-c", script], env=environment).returncode == status
    asked = tmp_path / "asked"
    assert asked.exists() == again and (not again or asked.read_text() == "requeue 7\n")
