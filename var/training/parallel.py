"""Several processes: who holds what, and how they agree.

With FSDP2 each process holds a share of every weight, gradient and moment. What is written to disk
is always whole, so that a run goes on with any number of processes, sharded or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather,
    gather_object,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from var.errors import UserError
from var.training.settings import Settings

T = TypeVar("T")


def accelerator(settings: Settings, folder: Path) -> Accelerator:
    """Return what knows the devices and processes that a run in a folder goes on with."""
    # The last run of this process, in a sweep, may have had another precision.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    return Accelerator(
        cpu=settings.cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=list(settings.trackers) or None,  # of none it would warn
        # Phis that a ladder leaves out get no gradient.
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=True, gradient_as_bucket_view=True
            ),
            # While one process writes a large checkpoint or draws a preview, the others wait.
            InitProcessGroupKwargs(timeout=timedelta(hours=3)),
            # What is cast for a block that was gathered shall go with it.
            AutocastKwargs(cache_enabled=settings.parallel != "fsdp"),
            GradScalerKwargs(init_scale=2.0**11, growth_interval=1000),  # VAR, section 5
        ],
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "tensorboard")),
    )


def shard(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Share a module's weights out over all processes, in place; blocks are gathered one by one.

    Accelerate shards on accelerators only; this is the same on CPUs.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
        for entry in getattr(block, "entries", ()):
            register_fsdp_forward_method(block, entry)
    fully_shard(module, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; if it is shared out, all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(
    tensors: Mapping[str, Tensor], *, keep: bool = True, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return tensors as wholes; all processes have to ask for them.

    Args:
        tensors: by name, some of them shared out.
        keep: this process wants them; the others help, one tensor at a time, and get nothing.
        device: where to keep what was shared out; None: where it is.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            kept[name] = full.to(device) if isinstance(tensor, DTensor) else full
    return kept


def spread(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor where, and as, another one is held."""
    value = value.to(like.device, like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def largest(number: Tensor) -> float:
    """Return the largest of the numbers, scalars, that the processes hold on their devices."""
    return float(gather(number.reshape(1)).max())


def alone(act: Callable[[], object], failing: str = "") -> None:
    """Act on the main process; all processes have to come, and meet its fate.

    Args:
        act: what is done.
        failing: what to say ahead of the reason, should a disk be full or not there.

    Raises:
        UserError: the input or a disk is at fault, as on the main process.
        RuntimeError: on the others, for whatever else it met with.
    """
    state, failure, told = PartialState(), None, [("", "")]
    if state.is_main_process:
        try:
            act()
        except Exception as error:
            failure = UserError(f"{failing} ({error})") if isinstance(error, OSError) else error
            told = [(type(failure).__name__, str(failure))]
    if state.num_processes > 1:
        broadcast_object_list(told)
    if failure is not None:
        raise failure
    kind, reason = told[0]
    if kind:
        raise UserError(reason) if kind == "UserError" else RuntimeError(f"{kind}: {reason}")


def together(act: Callable[[], object]) -> None:
    """Act on all processes, each on its own part; all meet the fate of the first that fails.

    Raises:
        UserError: the input is at fault, as on that process.
        RuntimeError: on the others, for whatever else it met with.
    """
    failure: Exception | None = None
    try:
        act()
    except Exception as error:
        failure = error
    told = [("", "")] if failure is None else [(type(failure).__name__, str(failure))]
    if PartialState().num_processes > 1:
        told = gather_object(told)
    if failure is not None:
        raise failure
    for kind, reason in told:
        if kind:
            raise UserError(reason) if kind == "UserError" else RuntimeError(f"{kind}: {reason}")


def chosen(choice: T) -> T:
    """Return what the main process has chosen; all processes have to ask."""
    choices = [choice]
    if PartialState().num_processes > 1:
        broadcast_object_list(choices)
    return choices[0]


class Agreement:
    """The largest of the numbers that the processes hold, each step, without asking the device."""

    def __init__(self) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if several else None

    def __call__(self, number: int) -> int:
        """Return the largest number; all processes have to ask."""
        if self.group is None:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.group)
        return int(shared)
