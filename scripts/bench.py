"""`var-bench`: speed and memory of combinations, side by side in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from var import atomic
from var.bars import progress_bar
from var.bench import machine, report
from var.bench.distance import add_distances
from var.bench.figures import check_baseline, scales, summary
from var.bench.machine import Rate
from var.bench.measure import Bench, Result
from var.bench.rows import Grid, Setting, Shelf, make_rows
from var.bench.training import make_steps, measure_steps
from var.devices import parse_device
from var.errors import UserError
from var.recipe import check_sampling
from var.scripts.command import check_writable, command, made

log = logging.getLogger("var.scripts.bench")

_LISTS = ("model", "decoding", "cache", "precision", "compile", "batch", "rows")


@command("bench", home="var.configs.bench")
def main(cfg: DictConfig) -> None:
    """Measure the rows that the configuration describes, and report."""
    check(cfg)
    if cfg.mode == "train":
        return train(cfg)
    device = parse_device(cfg.device)
    network = made(cfg.fd.features).to(device) if cfg.fd.number else None
    rows = make_rows(grid(cfg), setting(cfg), Shelf(device, cfg.files))
    rates = machine.measure(device)
    total = len(rows) * (1 + cfg.warmup + 2 * cfg.repeats)
    with progress_bar(total=total, shown=cfg.progress, unit="run") as bar:
        told = advance(bar)
        bench = Bench(rows, device, told=told)
        try:
            bench.warm_up(cfg.warmup)
            for number in range(cfg.repeats):
                bench.round(number)
                write(cfg, bench.results, rates, device)
            if network is not None:
                add_distances(
                    bench.results,
                    cfg.fd.number,
                    network,
                    choice=cfg.baseline,
                    told=told,
                )
        finally:  # Ctrl-C: whatever there is
            if any(result.totals for result in bench.results):
                write(cfg, bench.results, rates, device)
    finish(cfg, bench.results, rates)


def train(cfg: DictConfig) -> None:
    """Measure training steps instead of sampling."""
    device, values = parse_device(cfg.device), listed(cfg)
    steps = make_steps({**values, "naive": cfg.naive, "seed": cfg.seed, "files": cfg.files}, device)
    total = len(steps) * (1 + cfg.warmup + cfg.repeats)
    with progress_bar(total=total, shown=cfg.progress, unit="run") as bar:
        measure_steps(steps, device, warmup=cfg.warmup, repeats=cfg.repeats, told=advance(bar))
    rows = [step.figures() for step in steps]
    atomic.write(Path(cfg.out, "train.csv"), report.comma_separated(rows))
    machine_text = f"{machine.describe(device)}, PyTorch {torch.__version__}"
    atomic.write(
        Path(cfg.out, "train.md"),
        report.training(machine=machine_text, settings=OmegaConf.to_yaml(cfg), rows=rows),
    )
    print(report.table(rows))
    log.info("%s", Path(cfg.out, "train.md"))


def check(cfg: DictConfig) -> None:
    """Check what can be checked before anything is loaded.

    Raises:
        UserError: a value makes no sense; the message names it.
    """
    if cfg.mode not in ("sample", "train"):
        raise UserError(f"mode={cfg.mode}: use sample or train")
    check_baseline(cfg.baseline)
    for name, least in (("warmup", 0), ("repeats", 1), ("seed", 0)):
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise UserError(f"{name}={cfg[name]}: use a whole number from {least} on")
    if cfg.fd.number and (cfg.fd.number < 2 or cfg.fd.features.path is None):
        raise UserError(
            f"fd.number={cfg.fd.number}: a distance takes 2 images or more, and a feature network, "
            "fd.features.path=FILE"
        )
    check_writable(Path(cfg.out), f"out={cfg.out}")


def grid(cfg: DictConfig) -> Grid:
    """Return which rows the configuration asks for."""
    return Grid(naive=bool(cfg.naive), **listed(cfg))


def listed(cfg: DictConfig) -> dict[str, list[Any]]:
    """Return the lists of the configuration; a single value is a list of one."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {k: v if isinstance(v, list) else [v] for k, v in values.items() if k in _LISTS}


def setting(cfg: DictConfig) -> Setting:
    """Return what is the same in all rows.

    Raises:
        UserError: a sampling setting is out of range.
    """
    sampling: dict[str, Any] = OmegaConf.to_container(cfg.sampling, resolve=True)  # type: ignore[assignment]
    check_sampling(sampling)
    labels = None if cfg.labels is None else list(cfg.labels)
    return Setting(labels, cfg.seed, sampling, bool(cfg.greedy))


def advance(bar: tqdm[Any]) -> Callable[[str], None]:
    """Return what moves a bar one step on and shows a row's label beside it."""

    def told(label: str) -> None:
        bar.set_postfix_str(label)
        bar.update()

    return told


def write(cfg: DictConfig, results: list[Result], rates: list[Rate], device: torch.device) -> None:
    """Write the report and the figures.

    Raises:
        UserError: a file cannot be written.
    """
    rows, groups = summary(results, rates, cfg.baseline), scales(results, cfg.baseline)
    text = report.markdown(
        machine=f"{machine.describe(device)}, PyTorch {torch.__version__}",
        rates=rates,
        settings=OmegaConf.to_yaml(cfg),
        rows=rows,
        scales=groups,
        baseline=cfg.baseline,
    )
    atomic.write(Path(cfg.out, "bench.md"), text)
    atomic.write(Path(cfg.out, "bench.csv"), report.comma_separated(rows))
    atomic.write(Path(cfg.out, "scales.csv"), report.comma_separated(groups))


def finish(cfg: DictConfig, results: list[Result], rates: list[Rate]) -> None:
    """Show the table, draw the plot, and say which rows were given up.

    Raises:
        UserError: all of them were.
    """
    faults = [f"row {r.row.label}, batch {r.row.batch}: {r.fault}" for r in results if r.fault]
    if len(faults) == len(results):
        raise UserError(faults[0])
    rows = summary(results, rates, cfg.baseline)
    print(report.table([report.brief(row) for row in rows]))
    for fault in faults:
        log.warning("%s", fault)
    try:
        report.plot(Path(cfg.out, "bench.png"), rows)
    except ImportError:
        log.warning("no bench.png: for plots pip install 'var-toolkit[bench]'")
    log.info("%s", Path(cfg.out, "bench.md"))


if __name__ == "__main__":
    main()
