"""Parity with published code: every recorded case file, wherever it comes from.

Cases are `<root>/<system>/*.safetensors` below `tests/golden`, or below the folder that the
environment variable VAR_GOLDEN names. A system's checks are in `tests/golden_checks/<system>.py`:

- `CHECKS`: kind of case, the beginning of its file name, to the function that compares it;
- `NOT_APPLICABLE`: excuses for the outputs that are not compared, each with its reason.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from tests.golden_checks.case import Case

ROOT = Path(os.environ.get("VAR_GOLDEN") or Path(__file__).parent / "golden")
FILES = sorted(ROOT.glob("*/*.safetensors"))


def test_there_are_recorded_cases() -> None:
    assert FILES, f"no case files below {ROOT}"


@pytest.mark.golden
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_numbers_are_those_of_the_original(path: Path) -> None:
    checks = import_module(f"tests.golden_checks.{path.parent.name}")
    kinds = [kind for kind in checks.CHECKS if path.stem.startswith(kind)]
    assert kinds, f"no check for a case of this kind; there are: {', '.join(checks.CHECKS)}"
    kind = max(kinds, key=len)
    case = Case(path)
    checks.CHECKS[kind](case)
    excuses = [e for e in checks.NOT_APPLICABLE if e.kind == kind and e.when(case)]
    excused = {excuse.output for excuse in excuses}
    forgotten = sorted(case.outputs.keys() - case.compared - excused)
    assert not forgotten, f"outputs that nobody compared: {', '.join(forgotten)}"
