"""Processes that Slurm started, one for each GPU, find each other as after `accelerate launch`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

# Above what services use, below what systems hand out for outgoing connections.
_PORTS = range(15000, 30000)


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables by which torch and Accelerate find the other processes of a Slurm step.

    Variables that are set already stay as they are. Nothing happens outside `srun`, in a step of a
    single process, and where a launcher has set RANK.

    Args:
        environment: of this process.
    """
    for name, value in told_by_slurm(environment).items():
        environment.setdefault(name, value)


def told_by_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what Slurm's variables say in the words of torch; empty if there is nothing to say."""
    # Not SLURM_NTASKS: it is in batch scripts too, where one process would wait for the others.
    count = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or int(count) == 1:
        return {}
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": count,
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        # One that all processes of a job know, and other jobs on the node do not.
        "MASTER_PORT": str(_PORTS[int(environment["SLURM_JOB_ID"]) % len(_PORTS)]),
    }


def first_host(nodes: str) -> str:
    """Return the first host of a list as Slurm writes it.

    >>> first_host("gpu[03-06,11]-ib,login1")
    'gpu03-ib'
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)
