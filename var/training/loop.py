"""The training loop: one for tokenizers and generators, one process or many, killed or not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    ProjectConfiguration,
    set_seed,
)
from torch import Tensor
from torchvision.utils import make_grid, save_image
from tqdm.auto import tqdm

from var.errors import UserError
from var.random import Rng
from var.training import optim
from var.training.checkpoint import Checkpoints
from var.training.ema import Ema
from var.training.task import Task

log = logging.getLogger(__name__)

# (global micro-batches to skip, (which process, of how many)) -> endless (image, label) batches
OpenData = Callable[[int, tuple[int, int]], Iterator[tuple[Tensor, Tensor]]]


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
        compile: compile the module.
        cpu: leave the GPU alone.
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
    compile: bool = False
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise UserError(f"trainer.precision={self.precision}: use fp32, bf16 or fp16")
        if self.precision == "fp16" and (self.cpu or not torch.cuda.is_available()):
            raise UserError("trainer.precision=fp16 needs a GPU: use bf16 or fp32")
        whole = "steps batch_size accumulation log_every checkpoint_every keep"
        for name in whole.split():
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"trainer.{name}={value}: use a whole number of at least 1")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"trainer.batch_size={self.batch_size} cannot be split into "
                f"trainer.accumulation={self.accumulation} equal micro-batches"
            )
        try:
            optim.published_rate(1, kind=self.rate_kind, peak=1, warmup_steps=0, total_steps=9)
        except ValueError as error:
            raise UserError(f"trainer.rate_kind={self.rate_kind}: {error}") from error


class Trainer:
    """A run of a task: everything that lives as long as the run.

    Args:
        task: what to train.
        data: opens the training batches.
        folder: of the run; holds `checkpoints/`, `samples/` and TensorBoard's events.
        settings: how to train.
        export: called with the averaged module after each checkpoint, on the main process.
    """

    def __init__(
        self,
        *,
        task: Task,
        data: OpenData,
        folder: Path,
        settings: Settings,
        export: Callable[[torch.nn.Module], None],
    ) -> None:
        self.task, self.data, self.folder, self.settings = task, data, folder, settings
        self.export, self.step = export, 0
        self.accelerator = Accelerator(
            cpu=settings.cpu,
            mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision),
            gradient_accumulation_steps=settings.accumulation,
            log_with="tensorboard",
            # Phis that a ladder leaves out get no gradient.
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                GradScalerKwargs(init_scale=2.0**11, growth_interval=1000),  # VAR, section 5
            ],
            project_config=ProjectConfiguration(
                str(folder), logging_dir=str(folder / "tensorboard")
            ),
        )
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep)
        self.broken = torch.zeros((), dtype=torch.bool, device=self.accelerator.device)

    @property
    def micro_batch(self) -> int:
        """Images in a global micro-batch."""
        return self.settings.batch_size // self.settings.accumulation

    def fit(self, resume: Path | None = None) -> None:
        """Train to the last step, from scratch or from a checkpoint.

        Raises:
            UserError: a loss is not finite; the last checkpoint stays as it is.
        """
        self._set_up(resume)
        accelerator, settings = self.accelerator, self.settings
        shard = (accelerator.process_index, accelerator.num_processes)
        batches = self.data(self.step * settings.accumulation, shard)
        quiet = not accelerator.is_main_process
        with tqdm(total=settings.steps, initial=self.step, unit="step", disable=quiet) as bar:
            since, clock = self.step, time.perf_counter()
            while self.step < settings.steps:
                losses = self._step(batches)
                bar.update()
                if self.step % settings.log_every == 0 or self.step == settings.steps:
                    pace = (self.step - since) * settings.batch_size / (time.perf_counter() - clock)
                    self._log(losses, pace, bar)
                    since, clock = self.step, time.perf_counter()
                self._keep_records()
        accelerator.end_training()

    def _set_up(self, resume: Path | None) -> None:
        accelerator, settings, task = self.accelerator, self.settings, self.task
        set_seed(settings.seed, device_specific=True)
        task.to(accelerator.device)
        task.module.train()
        if resume is None:
            task.start(self._first, torch.Generator().manual_seed(settings.seed))
        self.ema = Ema(task.module, settings.ema).eval()
        optimizer = torch.optim.AdamW(
            optim.groups(task.module, settings.weight_decay), lr=settings.rate, betas=settings.betas
        )
        self.decayed = [group["weight_decay"] > 0 for group in optimizer.param_groups]
        if settings.compile:
            task.module.compile()
        self.module, self.optimizer = accelerator.prepare(task.module, optimizer)
        if resume is not None:
            self._resume(resume)
        accelerator.init_trackers("")

    def _first(self) -> tuple[Tensor, Tensor]:
        image, label = next(iter(self.data(0, (0, 1))))
        return image.to(self.accelerator.device), label.to(self.accelerator.device)

    def _resume(self, path: Path) -> None:
        self.step, extra = self.checkpoints.load(self.accelerator, path)
        self.ema.load_state_dict(extra["ema"])
        self.task.load_state_dict(extra["task"])
        log.info("resuming from %s", path)
        if self.accelerator.is_main_process:
            self.export(self.ema.module)  # the run may have died before it could

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        accelerator, settings = self.accelerator, self.settings
        self._schedule()
        sums: dict[str, Tensor] = {}
        for micro in range(settings.accumulation):
            image, label = (x.to(accelerator.device, non_blocking=True) for x in next(batches))
            rng = self._streams(micro, len(image))
            with accelerator.accumulate(self.module):
                losses = self.task.losses(self.module, image, label, rng)
                accelerator.backward(losses["total"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.module.parameters(), settings.clip)
                    sums["gradient_norm"] = torch.as_tensor(norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.broken |= ~torch.isfinite(losses["total"].detach())
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / settings.accumulation
        self.step += 1
        self.ema.update_parameters(self.task.module)
        rng = torch.Generator().manual_seed(self._seed(self.step))
        self.task.stepped(self.step, self.optimizer.optimizer, rng)
        return sums

    def _schedule(self) -> None:
        s = self.settings
        rate = optim.published_rate(
            self.step,
            kind=s.rate_kind,
            peak=s.rate,
            warmup_steps=s.warmup_steps,
            total_steps=s.steps,
            warmup_start=s.warmup_start,
            final=s.final_rate,
        )
        decay = optim.cosine_decay(self.step, s.steps, s.weight_decay, s.weight_decay_end)
        for group, decayed in zip(self.optimizer.param_groups, self.decayed, strict=True):
            group["lr"], group["weight_decay"] = rate, decay * decayed

    def _seed(self, step: int) -> int:
        return self.settings.seed * 1_000_003 + step

    def _streams(self, micro: int, share: int) -> Rng:
        # Numbered through the whole step: the same noise for any number of processes and
        # micro-batches.
        whole = self.settings.batch_size
        first = micro * self.micro_batch + self.accelerator.process_index * share
        return Rng.batch(self._seed(self.step) * whole + first, share, self.accelerator.device)

    def _log(self, losses: dict[str, Tensor], pace: float, bar: tqdm[None]) -> None:
        self._check()
        means = cast(dict[str, Tensor], self.accelerator.reduce(losses, reduction="mean"))
        values = {f"train/{k}": float(v) for k, v in means.items()}
        values |= self.task.report()
        values |= {"rate": self.optimizer.param_groups[0]["lr"], "images_per_second": pace}
        self.accelerator.log(values, step=self.step)
        bar.set_postfix(loss=f"{values['train/total']:.4g}", images_per_s=f"{pace:.3g}")

    def _check(self) -> None:
        if self.accelerator.reduce(self.broken.float()).item():
            saved = self.checkpoints.all()
            raise UserError(
                f"the loss was not finite at step {self.step} or shortly before; "
                f"last good checkpoint: {saved[-1] if saved else 'none'}. "
                "Lower trainer.rate, or train with trainer.precision=bf16 or fp32"
            )

    def _keep_records(self) -> None:
        settings, last = self.settings, self.step == self.settings.steps
        if settings.preview_every and (last or self.step % settings.preview_every == 0):
            self._preview()
        if last or self.step % settings.checkpoint_every == 0:
            self._check()
            extra = {"ema": self.ema.state_dict(), "task": self.task.state_dict()}
            self.checkpoints.save(self.accelerator, self.step, extra)
            if self.accelerator.is_main_process:
                self.export(self.ema.module)
            self.accelerator.wait_for_everyone()

    def _preview(self) -> None:
        if not self.accelerator.is_main_process:
            return
        images = self.task.preview(self.ema.module).float().cpu()
        grid = make_grid(images, nrow=10)
        path = self.folder / "samples" / f"step-{self.step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(grid, path)
        tracker = self.accelerator.get_tracker("tensorboard")
        tracker.log_images({"samples": grid[None].numpy()}, step=self.step, dataformats="NCHW")
