"""What a run says while it goes on: a bar or lines, `metrics.jsonl`, and whoever tracks it."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import save_image
from tqdm.auto import tqdm

from var.atomic import write
from var.bars import progress_bar
from var.training.settings import Settings

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class Records:
    """The records of a run, kept by its main process alone.

    Figures go to `metrics.jsonl`, one JSON object per line with `step`, `images` (seen so far),
    `seconds` (of training, over all parts of the run) and the figures themselves, and to the
    trackers. On a terminal there is a bar; elsewhere, in log files, a line with every figure.

    Args:
        accelerator: of the run, with its trackers.
        folder: of the run.
        settings: how it trains.
        config: what the trackers shall know of the run.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, settings: Settings, config: Mapping[str, Any]
    ) -> None:
        self.accelerator, self.folder, self.settings = accelerator, folder, settings
        self.bar = tqdm(disable=True)
        self.config = {k: v for k, v in config.items() if isinstance(v, int | float | str | bool)}

    def start(self, step: int) -> None:
        """Begin, or go on after so many steps: what was recorded later is forgotten.

        Only the main process begins; the others may count steps all the same.
        """
        path = self.folder / METRICS
        lines = path.read_text().splitlines() if step and path.is_file() else []
        # The last line may be torn: the run may have been killed while it was written.
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        before = json.loads(kept[-1])["seconds"] if kept else 0.0
        write(path, "".join(f"{line}\n" for line in kept))
        told = {"wandb": self._wandb(step), "tensorboard": {"purge_step": step + 1}}
        self.accelerator.init_trackers(self.folder.name, self.config, told)
        self.begun = time.perf_counter() - before
        self.last = step, time.perf_counter()
        total = self.settings.steps
        self.bar = progress_bar(total=total, initial=step, unit="step", desc="training")

    def step(self) -> None:
        """Count a step."""
        self.bar.update()

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures after a step, with the pace since the last ones of training."""
        now = time.perf_counter()
        size, total = self.settings.batch_size, self.settings.steps
        pace = (step - self.last[0]) * size / (now - self.last[1])
        self.last = step, now
        self._record(step, {**values, "images_per_second": round(pace, 3)})
        loss = f"{values['train/total']:.4g}"
        self.bar.set_postfix(loss=loss, images_per_s=f"{pace:.3g}")
        if self.bar.disable:
            left = tqdm.format_interval((total - step) * size / max(pace, 1e-9))
            log.info(
                "step %d of %d: loss %s, %.3g images/s, %s left", step, total, loss, pace, left
            )

    def judged(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures of an evaluation after a step; it does not count as training."""
        self._record(step, values)
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.bar.clear()
        log.info("step %d: %s", step, text)
        self.last = step, time.perf_counter()

    def pictures(self, step: int, grid: Tensor) -> None:
        """Keep a picture (3, H, W), values in [0, 1], as a file and with the trackers."""
        path = self.folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(grid, path)
        for tracker in self.accelerator.trackers:
            shape = {"dataformats": "NCHW"} if tracker.name == "tensorboard" else {}
            image = grid[None].numpy() if shape else grid[None].permute(0, 2, 3, 1).numpy()
            tracker.log_images({"samples": image}, step=step, **shape)

    def close(self) -> None:
        """Finish: nothing more will come."""
        self.bar.close()
        # Not `end_training`, which parts the processes: there may be another run.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _wandb(self, step: int) -> dict[str, str]:
        path = self.folder / "wandb.id"  # a run that goes on is one run there too
        if "wandb" not in self.settings.trackers:
            return {}
        if not (step and path.is_file()):
            write(path, uuid.uuid4().hex[:8])
        known = {"id": path.read_text(), "name": self.folder.name, "dir": str(self.folder)}
        return {**known, "resume": "allow"}

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self.accelerator.log(dict(values), step=step)
        seconds = round(time.perf_counter() - self.begun, 3)
        known = {"step": step, "images": step * self.settings.batch_size, "seconds": seconds}
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**known, **values}) + "\n")
