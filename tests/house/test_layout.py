"""The layout: folders on top, linked into the package, out of Hugging Face's way."""

import configparser
import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

distributions = functools.cache(importlib.metadata.packages_distributions)


@pytest.fixture(scope="module")
def setup(root: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg", encoding="utf-8")
    return parser


@pytest.mark.parametrize("name", ["tokenizers", "configs", "scripts"])
def test_top_folders_are_linked_into_the_package(root: Path, name: str) -> None:
    link = root / "var" / name
    assert link.is_symlink(), f"{link} must be a link: check out with symlinks enabled"
    assert link.readlink() == Path("..", name)


def test_tokenizers_has_no_init(root: Path) -> None:
    found = [str(path) for path in (root / "tokenizers").rglob("__init__.py*")]
    assert not found, "with it the folder hides Hugging Face's package of the same name"


def test_hugging_face_is_importable_from_the_root(root: Path) -> None:
    if not (importlib.util.find_spec("transformers") and importlib.util.find_spec("tokenizers")):
        pytest.skip("transformers and tokenizers are not installed")
    code = "import transformers, tokenizers; tokenizers.Tokenizer; import var.tokenizers.residual"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_setup_cfg_lists_every_package(
    setup: configparser.ConfigParser, sources: dict[str, str], root: Path
) -> None:
    inits = {path.parent for path in (root / "var").rglob("__init__.py")}
    found = {".".join(path.relative_to(root).parts) for path in inits}
    linked = {"var.tokenizers", "var.configs", "var.configs.bench", "var.scripts"}
    assert set(setup["options"]["packages"].split()) == found | linked
    homes = {module.rpartition(".")[0] for module in sources} - {""}
    assert homes <= found | linked, "a folder with modules but without __init__.py"


def test_setup_cfg_lists_every_requirement(
    setup: configparser.ConfigParser, sources: dict[str, str]
) -> None:
    required = names(setup["options"]["install_requires"])
    extra = required.union(*map(names, setup["options.extras_require"].values()))
    for text in sources.values():
        eager = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
        inside = set(re.findall(r"^ +(?:import|from) (\w+)", text, re.MULTILINE))
        assert not undeclared(eager, required)
        assert not undeclared(inside, extra), "imported where it is used, but in no extra"


def names(requirements: str) -> set[str]:
    """Return the names of distributions in a list of requirements."""
    return {normal(re.split(r"[<>=!~\[;]", line)[0]) for line in requirements.split()}


def undeclared(modules: set[str], declared: set[str]) -> set[str]:
    """Return which foreign modules belong to none of the declared distributions."""
    foreign = modules - sys.stdlib_module_names - {"var"}
    homes = {name: distributions().get(name, [name]) for name in foreign}
    return {name for name, of in homes.items() if not declared & set(map(normal, of))}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")
