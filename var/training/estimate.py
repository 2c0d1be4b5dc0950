"""How much memory a run will take, told before it begins.

Weights are counted. What is kept for gradients is measured on one image and on two, by the task
itself on the device itself, and extended to the micro-batch: to the first image comes what does not
depend on their number, such as weights in half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from var.random import Rng
from var.training.settings import Settings
from var.training.task import Task

Storages = dict[int, int]  # address to bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes that one process will need, scratch memory and the device's own aside.

    Attributes:
        weights: of all that is trained or asked, as this process holds it.
        gradients, optimizer, average: of what is trained.
        activations: kept for the gradients of a micro-batch.
        saving: how much less that is with checkpointing; 0: it is on, or cannot be.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    saving: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def __str__(self) -> str:
        """Return it in one line.

        >>> print(Estimate(2 << 30, 1 << 30, 2 << 30, 1 << 30, 3 << 29, saving=1 << 30))
        about 7.5 GiB per process (weights 2.0, gradients 1.0, optimizer 2.0, average 1.0, \
activations 1.5); trainer.checkpointing=true would save about 1.0 GiB
        """
        shift, unit = (30, "GiB") if self.total >= 1 << 30 else (20, "MiB")
        names = ("weights", "gradients", "optimizer", "average", "activations")
        parts = ", ".join(f"{name} {getattr(self, name) / (1 << shift):.1f}" for name in names)
        text = f"about {self.total / (1 << shift):.1f} {unit} per process ({parts})"
        if not self.saving:
            return text
        less = f"{self.saving / (1 << shift):.1f} {unit}"
        return f"{text}; trainer.checkpointing=true would save about {less}"


def estimate(
    task: Task,
    settings: Settings,
    image: Tensor,
    label: Tensor,
    *,
    processes: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Estimate:
    """Return what a run will need on each of its processes, all of which have to ask.

    The task stays as it is, and so do all random streams.

    Args:
        task: where it will be trained, before anything is recomputed, shared out or compiled.
        settings: of the run.
        image, label: images as the data hands them out.
        processes: how many there are.
        autocast: makes what losses are computed in.
    """
    parts = [part for part in vars(task).values() if isinstance(part, nn.Module)]
    trained = sum(map(_bytes, (p for p in task.module.parameters() if p.requires_grad)))
    own = sum(map(_bytes, task.module.parameters()))
    whole = sum(_storages(t for part in parts for t in _tensors(part)).values())
    shares = processes if settings.parallel == "fsdp" else 1
    image, label = (part if len(part) > 1 else torch.cat([part] * 2) for part in (image, label))
    measured = partial(_measured, task, parts, image, label, autocast)
    (plain, less), (twice, twice_less) = measured(1), measured(2)
    more = settings.micro_batch // processes - 1
    kept, rest = plain + more * (twice - plain), less + more * (twice_less - less)
    return Estimate(
        weights=whole - own + own // shares,
        gradients=trained // shares,
        optimizer=2 * trained // shares,
        average=own // shares,
        activations=rest if settings.checkpointing else kept,
        saving=0 if settings.checkpointing else kept - rest,
    )


@dataclass
class _Tally:
    """What is kept for gradients, inside each block and elsewhere, and what blocks are given."""

    elsewhere: Storages = field(default_factory=Storages)
    given: Storages = field(default_factory=Storages)
    inside: dict[int, Storages] = field(default_factory=dict[int, Storages])
    held: list[Tensor] = field(default_factory=list[Tensor])
    here: int | None = None

    def keep(self, tensor: Tensor) -> Tensor:
        room = self.elsewhere if self.here is None else self.inside[self.here]
        room.update(_storages([tensor]))
        return tensor.detach()  # not itself: an output would hold what holds it

    def enter(self, number: int, block: nn.Module, args: Any, kwargs: Any) -> None:
        self.here, self.inside[number] = number, {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.held += tensors  # so that their addresses stay theirs
        self.given |= _storages(tensors)

    def leave(self, *_: object) -> None:
        self.here = None

    def totals(self, fixed: Storages) -> tuple[int, int]:
        """Return the bytes that are kept, and those that are if blocks are recomputed.

        Then only one block at a time keeps anything but what it is given.
        """
        blocks = [_without(room, fixed) for room in self.inside.values()]
        outer = _without(self.elsewhere, fixed)
        lasting = outer | _without(self.given, fixed)
        alone = (sum(_without(room, lasting).values()) for room in blocks)
        for room in blocks:
            outer |= room
        if not blocks:
            return sum(outer.values()), sum(outer.values())
        return sum(outer.values()), sum(lasting.values()) + max(alone)


def _measured(
    task: Task,
    parts: list[nn.Module],
    image: Tensor,
    label: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
    number: int,
) -> tuple[int, int]:
    """Return `_Tally.totals` of so many images."""
    shared = {id(p): p for part in parts for p in part.parameters()}
    twin, tally, device = copy.deepcopy(task, shared), _Tally(), image.device
    rng = Rng.batch(0, number, device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _watched(twin.blocks, tally), autocast():
        losses = twin.losses(twin.module, image[:number], label[:number], rng)
    held = [
        t for part in vars(twin).values() if isinstance(part, nn.Module) for t in _tensors(part)
    ]
    totals = tally.totals(_storages(held))
    del losses  # only now: what it holds has an address of its own as long as it is held
    return totals


@contextmanager
def _watched(blocks: Iterable[nn.Module], tally: _Tally) -> Iterator[None]:
    hooks: list[Any] = []
    for number, block in enumerate(blocks):
        enter = partial(tally.enter, number)
        hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(block.register_forward_hook(tally.leave))
    try:
        with torch.autograd.graph.saved_tensors_hooks(tally.keep, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storages(tensors: Iterable[Tensor]) -> Storages:
    rooms = (tensor.untyped_storage() for tensor in tensors)
    return {room.data_ptr(): room.nbytes() for room in rooms}


def _without(storages: Storages, known: Storages) -> Storages:
    return {place: size for place, size in storages.items() if place not in known}
