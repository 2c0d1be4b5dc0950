"""The training loop: one for tokenizers and generators, one process or many, killed or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.utils import make_grid

from var.errors import UserError
from var.nn.flex import use_flex
from var.nn.recompute import recompute
from var.training import optim, parallel
from var.training.chance import Chance
from var.training.checkpoint import Checkpoints, Snapshot
from var.training.ema import Ema
from var.training.estimate import estimate
from var.training.records import Records
from var.training.settings import Settings
from var.training.state import captured, restore
from var.training.stopping import Requests, Stopped
from var.training.task import Task

log = logging.getLogger(__name__)

# (steps to skip, (which process, of how many)) -> endless micro-batches of images and labels
OpenData = Callable[[int, tuple[int, int]], Iterator[tuple[Tensor, Tensor]]]
First = Callable[[int], tuple[Tensor, Tensor]]
# What is asked, by all processes, of the averaged weights: figures by name.
Evaluate = Callable[[torch.nn.Module], dict[str, float]]
# Images that tell well enough where latents lie before training begins.
_FEW = 256
# Steps in a row without a scale that suits: then it is not the scale.
_SCALING = 50
# Settings on which it depends what a run makes of its data.
_BINDING = ("batch_size", "seed", "steps", "rate")


class Trainer:
    """A run of a task: everything that lives as long as the run.

    Args:
        task: what to train.
        data: opens the training batches.
        first: returns so many of the first images and labels, or fewer if a batch is smaller.
        folder: of the run; holds `checkpoints/`, `samples/`, `metrics.jsonl` and TensorBoard's
            events.
        settings: how to train.
        export: called with the averaged module after each checkpoint, on the main process.
        evaluate: what is measured every so often; None: nothing.
        aside: called after each checkpoint, on all processes.
        config: what trackers shall know of the run.
    """

    def __init__(
        self,
        *,
        task: Task,
        data: OpenData,
        first: First,
        folder: Path,
        settings: Settings,
        export: Callable[[torch.nn.Module], None],
        evaluate: Evaluate | None = None,
        aside: Callable[[], None] = lambda: None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.data, self.first = task, data, first
        self.folder, self.settings = folder, settings
        self.export, self.evaluate, self.aside, self.step = export, evaluate, aside, 0
        self.accelerator = parallel.accelerator(settings, folder)
        self.records = Records(self.accelerator, folder, settings, config or {})
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep)
        self.agreement = parallel.Agreement()
        self.chance = Chance(settings, self.accelerator.process_index)
        # First step whose loss was not finite, noted by the device.
        self.broken = torch.full((), torch.inf, device=self.accelerator.device)
        self.untaken = 0  # steps in a row

    def fit(self, resume: Path | None = None) -> None:
        """Train to the last step, from scratch or from a checkpoint.

        Raises:
            UserError: a loss is not finite, or the disk is full; the last checkpoint stays as it
                is.
            Stopped: a signal asked for the end; a checkpoint was written.
        """
        with Requests() as requests:
            self._set_up(resume)
            shard = (self.accelerator.process_index, self.accelerator.num_processes)
            batches = self.data(self.step, shard)
            self._alone(lambda: self.records.start(self.step))
            try:
                while self.step < self.settings.steps:
                    losses = self._step(batches)
                    self.records.step()
                    asked = self.agreement(requests.number)
                    asked = asked if self.step < self.settings.steps else 0
                    self._keep_records(losses, early=asked > 0)
                    if asked:
                        log.info("stopped at step %d: the same command goes on", self.step)
                        raise Stopped(asked)
            finally:
                self.records.close()

    def _set_up(self, resume: Path | None) -> None:
        accelerator, settings, task = self.accelerator, self.settings, self.task
        task.to(accelerator.device)
        task.module.train()
        resume = parallel.chosen(resume)
        self._look(new=resume is None)
        self.ema = Ema(task.module, settings.ema)
        if settings.attention == "flex":
            use_flex(task.module)
        if settings.checkpointing:
            recompute(self._blocks("trainer.checkpointing=true"))
        sharded = settings.parallel == "fsdp" and accelerator.num_processes > 1
        if sharded:
            blocks = self._blocks("trainer.parallel=fsdp")
            parallel.shard(task.module, blocks, accelerator.device)
        optimizer = torch.optim.AdamW(
            optim.groups(task.module, settings.weight_decay),
            lr=settings.rate,
            betas=settings.betas,
            fused=True,
        )
        self.decayed = [group["weight_decay"] > 0 for group in optimizer.param_groups]
        if settings.compile:
            task.module.compile()
        if sharded:
            self.module, self.optimizer = task.module, accelerator.prepare(optimizer)
        else:
            self.module, self.optimizer = accelerator.prepare(task.module, optimizer)
        self.ema.start(task.module)
        if resume is not None:
            self._resume(resume)

    def _look(self, new: bool) -> None:
        """Let a new run's task see the first micro-batch, and tell how much memory it will take."""
        accelerator, task, seed = self.accelerator, self.task, self.settings.seed
        image, label = (x.to(accelerator.device) for x in self.first(_FEW if new else 2))
        if new:
            task.start(image, torch.Generator().manual_seed(seed))
        places = {"processes": accelerator.num_processes, "autocast": accelerator.autocast}
        needed = estimate(task, self.settings, image, label, **places)
        if accelerator.is_main_process:
            log.info("this will need %s", needed)

    def _blocks(self, wish: str) -> list[torch.nn.Module]:
        if not (blocks := list(self.task.blocks)):
            raise UserError(f"{wish} is for generators: leave it out")
        return blocks

    def _resume(self, path: Path) -> None:
        snapshot = self.checkpoints.load(path, self.task.module.state_dict())
        self.step, extra = snapshot.step, snapshot.extra
        restore(self.task.module, self.optimizer.optimizer, snapshot)
        self.ema.load(dict(snapshot.average), extra["updates"])
        self.task.load_state_dict(extra["task"])
        if self.accelerator.scaler is not None and extra["scaler"]:
            self.accelerator.scaler.load_state_dict(extra["scaler"])
        log.info("resuming from %s", path)
        for name in _BINDING:
            before, now = snapshot.settings[name], getattr(self.settings, name)
            if before != now:
                log.warning("trainer.%s is %s, was %s: from here on another run", name, now, before)
        self._export(lambda: None)  # the run may have died before it could

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        accelerator, settings = self.accelerator, self.settings
        self._schedule()
        sums: dict[str, Tensor] = {}
        for micro in range(settings.accumulation):
            image, label = (x.to(accelerator.device, non_blocking=True) for x in next(batches))
            self.chance.sow(self.step, micro)
            rng = self.chance.streams(self.step, micro, len(image), accelerator.device)
            with accelerator.accumulate(self.module):
                with accelerator.autocast():
                    losses = self.task.losses(self.module, image, label, rng)
                self._note(losses["total"])
                accelerator.backward(losses["total"])
                if accelerator.sync_gradients:
                    sums["gradient_norm"] = self._update()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / settings.accumulation
        self.step += 1
        self.ema.update(self.task.module)
        rng = self.chance.common(self.step)
        self.task.stepped(self.step, self.optimizer.optimizer, rng)
        return sums

    def _update(self) -> Tensor:
        """Take the step, and return the length of its gradient."""
        parameters, clip = self.module.parameters(), self.settings.clip
        norm = parallel.whole(torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, clip)))
        if self.accelerator.scaler is None:
            self._note(norm)
            if self.settings.tolerate and not bool(norm.isfinite()):
                self._leave_out(self.settings.tolerate)
                return norm
        self.optimizer.step()
        if self.optimizer.step_was_skipped:  # by loss scaling, which finds its scale so
            self._leave_out(max(_SCALING, self.settings.tolerate))
        else:
            self.untaken = 0
        return norm

    def _leave_out(self, most: int) -> None:
        self.untaken += 1
        if self.untaken > most:
            self.broken.clamp_(max=self.step + 1)
            self._check()
        log.warning("step %d is not taken: its gradient is not finite", self.step + 1)
        self.broken.fill_(torch.inf)

    def _note(self, number: Tensor) -> None:
        step = self.broken.clamp(max=self.step + 1)
        self.broken = torch.where(number.detach().isfinite(), self.broken, step)

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

    def _keep_records(self, losses: dict[str, Tensor], early: bool) -> None:
        settings, last = self.settings, early or self.step == self.settings.steps

        def due(every: int) -> bool:
            return bool(every) and (last or self.step % every == 0)

        if due(settings.log_every):
            self._check()
            means = cast(dict[str, Tensor], self.accelerator.reduce(losses, reduction="mean"))
            values = {f"train/{name}": float(value) for name, value in means.items()}
            rate = self.optimizer.param_groups[0]["lr"]
            values |= {**self.task.report(), "rate": rate}
            self._alone(lambda: self.records.figures(self.step, values))
        if due(settings.checkpoint_every):
            self._check()
            self._save()
        if due(settings.evaluate_every) and self.evaluate and not early:
            with self.ema.shown() as module:
                figures = self.evaluate(module)
            self._alone(lambda: self.records.judged(self.step, figures))
        if due(settings.preview_every) and not early:
            self._preview()

    def _check(self) -> None:
        first = -parallel.largest(-self.broken)
        if first < torch.inf:
            raise UserError(
                f"the loss was not finite at step {int(first)}; last good checkpoint: "
                f"{self.checkpoints.last}. Lower trainer.rate, train with trainer.precision=bf16 "
                "or fp32, or let such steps pass by trainer.tolerate=10"
            )

    def _save(self) -> None:
        accelerator, main = self.accelerator, self.accelerator.is_main_process
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        snapshot = Snapshot(
            self.step,
            **captured(self.task.module, self.ema, self.optimizer.optimizer, keep=main),
            extra={"updates": self.ema.updates, "task": self.task.state_dict(), "scaler": scaler},
            settings={name: getattr(self.settings, name) for name in _BINDING},
        )
        self._export(lambda: self.checkpoints.save(snapshot))
        self.aside()

    def _export(self, before: Callable[[], object]) -> None:
        main = self.accelerator.is_main_process
        with self.ema.shown(here=main, device=torch.device("cpu")) as module:
            self._alone(lambda: (before(), self.export(module)))

    def _alone(self, act: Callable[[], object]) -> None:
        last = f"last good checkpoint: {self.checkpoints.last}. Make room, then go on by the same"
        parallel.alone(act, f"cannot write to {self.folder} at step {self.step}; {last} command")

    def _preview(self) -> None:
        def draw() -> None:
            images = self.task.preview(module).float().cpu()
            self.records.pictures(self.step, make_grid(images, nrow=10))

        with self.ema.shown(here=self.accelerator.is_main_process) as module:
            self._alone(draw)
