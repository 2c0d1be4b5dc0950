"""The sources, as the guards of the house see them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    """Import name to source of every module of the package, each where it really lies."""
    found = {}
    for top, prefix in {
        "var": "",
        "tokenizers": "var.",
        "scripts": "var.",
        "configs": "var.",
    }.items():
        for path in sorted((ROOT / top).rglob("*.py")):  # does not follow links
            name = prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found
