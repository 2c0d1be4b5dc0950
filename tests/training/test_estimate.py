"""The memory a run will take: counted weights, and activations told from one image and two."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from var.nn.recompute import recompute
from var.random import Rng
from var.tokenizers.losses import Objective
from var.tokenizers.multiscale import MultiScaleVQ
from var.training.estimate import Estimate, estimate
from var.training.generator import GeneratorTask
from var.training.settings import Settings
from var.training.tokenizer import TokenizerTask

CODES = {"vocabulary": 32, "channels": 6, "width": 8, "multipliers": [1, 2], "blocks": 1}
SIZE = 6  # images of a batch


def tokenizer() -> MultiScaleVQ:
    return MultiScaleVQ(**CODES, scales=4, groups=4)


def generator() -> GeneratorTask:
    """Return a task whose tokens cost little beside the generator."""
    task = GeneratorTask(
        backbone=tiny.model(depth=3, drop=0.1),
        tokenizer=tokenizer().requires_grad_(False),
        schedule=tiny.SCHEDULE,
        sampler=lambda backbone: torch.zeros(1, 3, 8, 8),
    )
    task.module.train()
    return task


def batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(SIZE, 3, 8, 8, generator=rng), torch.arange(SIZE) % tiny.CLASSES


def settings(**changes: Any) -> Settings:
    return Settings(**{"steps": 1, "batch_size": SIZE, "cpu": True, **changes})


def kept(task: Any) -> int:
    """Return the bytes that a whole batch keeps for gradients; checkpoints keep their inputs."""
    parts = (task.module, task.tokenizer)
    weights = {t.untyped_storage().data_ptr() for p in parts for t in p.state_dict().values()}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        room = tensor.untyped_storage()
        if room.data_ptr() not in weights:
            held[room.data_ptr()] = room.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = task.losses(task.module, *batch(), Rng(range(SIZE)))
    assert losses["total"].requires_grad
    return sum(held.values())


def test_activations_are_those_of_the_whole_micro_batch() -> None:
    task = generator()
    told = estimate(task, settings(), *batch())
    assert told.activations == pytest.approx(kept(task), rel=0.02)
    split = estimate(task, settings(accumulation=2), *batch())
    assert split.activations == pytest.approx(told.activations / 2, rel=0.02)


def test_checkpointing_keeps_one_block_besides_the_inputs_of_all() -> None:
    task = generator()
    told = estimate(task, settings(checkpointing=True), *batch())
    plain = estimate(task, settings(), *batch())
    assert plain.activations - plain.saving == told.activations and not told.saving
    recompute(task.blocks)
    inputs = kept(task)
    block = (plain.activations - inputs) / 3
    assert told.activations == pytest.approx(inputs + block, rel=0.02)


def test_weights_are_shared_out_by_fsdp_alone() -> None:
    task = generator()
    size = sum(p.nbytes for p in task.module.parameters())
    frozen = sum(t.nbytes for t in task.tokenizer.state_dict().values())
    one = estimate(task, settings(), *batch())
    assert (one.weights, one.gradients, one.optimizer) == (size + frozen, size, 2 * size)
    assert one.average == size
    ddp = estimate(task, settings(), *batch(), processes=2)
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (size + frozen, size, 2 * size)
    fsdp = estimate(task, settings(parallel="fsdp"), *batch(), processes=2)
    assert fsdp.weights == pytest.approx(frozen + size / 2, abs=2)
    assert fsdp.optimizer == size and fsdp.activations == ddp.activations


def test_half_precision_keeps_less() -> None:
    task = generator()
    full = estimate(task, settings(), *batch())
    half_precision = partial(torch.autocast, "cpu", torch.bfloat16)
    half = estimate(task, settings(), *batch(), autocast=half_precision)
    assert half.activations < full.activations


def test_nothing_is_left_behind() -> None:
    module = tokenizer()
    task = TokenizerTask(
        tokenizer=module,
        objective=Objective([]),
        schedule=tiny.SCHEDULE,
        sample=torch.rand(1, 3, 8, 8),
    )
    task.module.train()
    state, before = torch.get_rng_state(), str(task.state_dict())
    told = estimate(task, settings(), *batch())
    assert told.activations > 0 and told.saving == 0
    assert str(task.state_dict()) == before and not task.vectors
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters())


def test_it_reads_as_one_line() -> None:
    text = str(Estimate(3 << 20, 2 << 20, 4 << 20, 2 << 20, 9 << 19))
    assert text == (
        "about 15.5 MiB per process (weights 3.0, gradients 2.0, optimizer 4.0, average 2.0, "
        "activations 4.5)"
    )
