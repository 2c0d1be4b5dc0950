"""How to train: the numbers of a run, checked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import is_wandb_available

from var.errors import UserError
from var.training import optim

_CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "parallel": ("ddp", "fsdp"),
    "attention": ("grouped", "flex"),
}
_TRACKERS = {"tensorboard", "wandb"}
_LEAST = {
    **dict.fromkeys(("steps", "batch_size", "accumulation", "log_every", "checkpoint_every"), 1),
    **{"keep": 1, "preview_every": 0, "evaluate_every": 0, "tolerate": 0, "seed": 0},
}
_RANGES = {"ema": (0.0, 1.0), "clip": (0.0, float("inf")), "rate": (0.0, float("inf"))}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step, over all processes and micro-batches.
        accumulation: micro-batches per step.
        precision: `fp32`, `bf16` or `fp16` (autocast; fp16 with loss scaling, on GPU).
        rate, rate_kind, warmup_steps, warmup_start, final_rate: see `optim.published_rate`.
        weight_decay, weight_decay_end: of the decayed group, along a half cosine.
        betas: of AdamW.
        clip: largest total gradient norm.
        ema: decay of the weights' moving average.
        seed: of shuffles, dropout and label dropping.
        log_every, preview_every, checkpoint_every: steps between them; previews may be 0 (none).
        keep: checkpoints kept.
        evaluate_every: steps between evaluations of the averaged weights; 0: none.
        tolerate: steps in a row whose gradients may be infinite or not numbers, and are then not
            taken; 0: the first one ends the run. To look, the program waits for the device.
        parallel: with several processes, `ddp`: each holds all weights; `fsdp`: each holds a share
            of weights, gradients and optimiser state (generators).
        checkpointing: recompute blocks in the backward pass instead of remembering them.
        attention: `grouped`: a kernel for each group of an image; `flex`: FlexAttention, one for
            all of them, on CUDA.
        compile: compile the module.
        cpu: leave the GPU alone.
        trackers: who is told the figures beside `metrics.jsonl`: `tensorboard`, `wandb`.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    precision: str = "fp32"
    rate: float = 1e-4
    rate_kind: str = "lin0"
    warmup_steps: float = 0
    warmup_start: float = 0.005
    final_rate: float = 0.01
    weight_decay: float = 0.05
    weight_decay_end: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 2.0
    ema: float = 0.999
    seed: int = 0
    log_every: int = 20
    preview_every: int = 500
    checkpoint_every: int = 500
    keep: int = 2
    evaluate_every: int = 0
    tolerate: int = 0
    parallel: str = "ddp"
    checkpointing: bool = False
    attention: str = "grouped"
    compile: bool = False
    cpu: bool = False
    trackers: Sequence[str] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"trainer.{name}={getattr(self, name)}: use {' or '.join(choices)}")
        if odd := sorted(set(self.trackers) - _TRACKERS):
            raise UserError(f"trainer.trackers: {odd[0]} is unknown, use {sorted(_TRACKERS)}")
        if "wandb" in self.trackers and not is_wandb_available():
            raise UserError("trainer.trackers=[wandb] needs pip install 'var-toolkit[wandb]'")
        if self.precision == "fp16" and (self.cpu or not torch.cuda.is_available()):
            raise UserError("trainer.precision=fp16 needs a GPU: use bf16 or fp32")
        self._check_numbers()
        if self.batch_size % self.accumulation:
            raise UserError(
                f"trainer.batch_size={self.batch_size} cannot be split into "
                f"trainer.accumulation={self.accumulation} equal micro-batches"
            )
        try:
            optim.published_rate(8, kind=self.rate_kind, peak=1, warmup_steps=0, total_steps=9)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f"trainer.rate_kind={self.rate_kind}: {error}") from error

    def _check_numbers(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"trainer.{name}={value}: use a whole number of at least {least}")
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"trainer.{name}={getattr(self, name)}: use {least}..{most}")

    @property
    def micro_batch(self) -> int:
        """Images in a micro-batch, over all processes."""
        return self.batch_size // self.accumulation
