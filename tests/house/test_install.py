"""Installed into an environment of its own, from a wheel or editable: all is there, and works."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.installed import commands

PARTS = ("var", "tokenizers", "configs", "scripts", "setup.cfg", "pyproject.toml", "MANIFEST.in")
PAPERS = ("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")


def run(*command: str | Path, cwd: Path) -> str:
    """Return what a command printed; fail with it if the command fails."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def install(home: Path, *what: str | Path) -> Path:
    """Install into a new environment that borrows what var depends on; return its commands."""
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    variables = {"base": str(home), "platbase": str(home)}
    scripts, site = (Path(sysconfig.get_path(p, "venv", variables)) for p in ("scripts", "purelib"))
    # Folders named in a .pth file are searched last, and their own .pth files are not read: an
    # editable installation of var stays out of sight.
    lenders = [path for path in sys.path if path.endswith("-packages")]
    (site / "borrowed.pth").write_text("\n".join(lenders), encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-index")
    run(*pip, "--no-deps", "--no-build-isolation", *what, cwd=home)
    return scripts


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: nothing is left behind in the checkout."""
    source = tmp_path_factory.mktemp("source")
    rubbish = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PARTS, *PAPERS):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, symlinks=True, ignore=rubbish)
        else:
            shutil.copy(root / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """A wheel, built from an sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that has the wheel."""
    return install(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a `var/cache` of its own, as / has it."""
    (tmp_path / "var/cache").mkdir(parents=True)
    return tmp_path


def test_the_wheel_holds_everything(wheel: Path, root: Path, sources: dict[str, str]) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {n.removesuffix(".py").removesuffix("/__init__") for n in names if n.endswith(".py")}
    assert modules == {module.replace(".", "/") for module in sources}
    configs = {f"var/{path.relative_to(root)}" for path in (root / "configs").rglob("*.yaml")}
    zoo = {str(p.relative_to(root)) for p in (root / "var/zoo").rglob("*") if p.is_file()}
    assert {"var/py.typed"} | configs | zoo <= names


def test_the_wheel_holds_nothing_else_on_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"var"}


@pytest.mark.parametrize("command", commands())
def test_an_installed_command_helps(installed: Path, command: str, elsewhere: Path) -> None:
    assert command in run(installed / command, "--help", cwd=elsewhere)


IMPORTS = "import var.tokenizers.residual as module, var.cache.base; print(module.__file__)"


def test_what_was_installed_is_what_runs(installed: Path, elsewhere: Path) -> None:
    place = run(installed / "python", "-c", IMPORTS, cwd=elsewhere)
    assert installed.parent in Path(place.strip()).parents


def test_editable_is_importable_elsewhere(source: Path, elsewhere: Path) -> None:
    scripts = install(elsewhere / "environment", "--editable", source)
    place = run(scripts / "python", "-c", IMPORTS, cwd=elsewhere)
    assert source in Path(place.strip()).parents
