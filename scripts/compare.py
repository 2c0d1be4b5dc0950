"""`var-compare`: reports of `var-evaluate` side by side."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from var.errors import UserError
from var.evaluation.compare import compare
from var.scripts.command import check_writable, command


@command("compare")
def main(cfg: DictConfig) -> None:
    """Show what differs among reports, and write it."""
    if cfg.out is not None:
        check_writable(Path(cfg.out), f"out={cfg.out}")
    reports: Any = OmegaConf.to_container(cfg.reports) if OmegaConf.is_list(cfg.reports) else None
    print(compare(found(reports or [cfg.reports]), cfg.out and Path(cfg.out)))


def found(patterns: list[str]) -> list[Path]:
    """Return the reports of patterns: files, folders that hold one, `*` and `**` allowed.

    Raises:
        UserError: there is none of some pattern.
    """
    paths: list[Path] = []
    for pattern in patterns:
        hits = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
        if len(hits) > 1:  # a star meets much else
            hits = [hit for hit in hits if hit.is_dir() or hit.suffix == ".json"]
        files = [hit / "report.json" if hit.is_dir() else hit for hit in hits]
        if not (there := [file for file in files if file.is_file()]):
            raise UserError(f"reports={pattern}: there is no report.json; var-evaluate writes them")
        paths += [path for path in there if path not in paths]
    return paths


if __name__ == "__main__":
    main()
