"""Habits that a parser can check: size, documentation, and what has no place in a library."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE, FUNCTION = 300, 40  # lines
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
MACHINE = re.compile(r"(?<![\w.])/(work|farm)/")


def length(function: Function) -> int:
    """Return the lines of a function without those of its docstring."""
    lines = (function.end_lineno or 0) - function.lineno
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def too_long(source: str) -> Iterator[str]:
    """Yield what is longer than a reader's patience."""
    if (lines := source.count("\n")) > FILE:
        yield f"{lines} lines, {FILE} are enough"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and length(node) > FUNCTION:
            yield f"{node.name} has {length(node)} lines, {FUNCTION} are enough"


def out_of_place(source: str) -> Iterator[str]:
    """Yield what belongs into a script, or nowhere."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            yield f"line {node.lineno} prints: take a logger"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            if "argparse" in names:
                yield f"line {node.lineno} imports argparse: commands are configured by Hydra"


def undocumented(node: ast.AST, path: str = "") -> Iterator[str]:
    """Yield the public names without docstring.

    The class speaks for its `forward`, and for members that are only declared (`...`).
    """
    if isinstance(node, ast.Module) and node.body and not ast.get_docstring(node):
        yield "the module has no docstring"
    for child in getattr(node, "body", []):
        if not isinstance(child, Documented) or child.name.startswith("_"):
            continue
        declared = ast.unparse(child.body[0]) == "..."
        if not (ast.get_docstring(child) or declared or child.name == "forward"):
            yield f"{path}{child.name} has no docstring"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{child.name}.")


def test_files_and_functions_are_short(sources: dict[str, str]) -> None:
    assert not [f"{module}: {what}" for module, text in sources.items() for what in too_long(text)]


def test_the_library_neither_prints_nor_parses_arguments(sources: dict[str, str]) -> None:
    library = {name: text for name, text in sources.items() if not name.startswith("var.scripts")}
    assert not [
        f"{module}: {what}" for module, text in library.items() for what in out_of_place(text)
    ]


def test_public_names_are_documented(sources: dict[str, str]) -> None:
    found = {module: undocumented(ast.parse(text)) for module, text in sources.items()}
    assert not [f"{module}: {what}" for module, faults in found.items() for what in faults]


def test_no_file_knows_the_machine_it_was_written_on(root: Path) -> None:
    texts = {path: path.read_bytes().decode("utf-8", errors="ignore") for path in tracked(root)}
    assert not [str(path) for path, text in texts.items() if MACHINE.search(text)]


def tracked(root: Path) -> list[Path]:
    """Return the files under version control that hold text, links left aside."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    # Untracked files that are not ignored are about to be tracked.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip(f"git does not list the files: {listing.stderr.strip()}")
    paths = [root / name for name in listing.stdout.split("\0") if name]
    binary = {".safetensors", ".png", ".npz", ".pt"}
    return [p for p in paths if p.is_file() and not p.is_symlink() and p.suffix not in binary]


def test_the_rules_can_be_broken() -> None:
    bad = "import argparse\nclass A:\n  def b(self): print()\n  def _c(self): print()\n"
    bad += "def f():\n" + 41 * "    x = 1\n"
    assert list(too_long(bad)) == ["f has 41 lines, 40 are enough"]
    assert list(too_long("\n" * 301)) == ["301 lines, 300 are enough"]
    assert len(list(out_of_place(bad))) == 3
    assert [line.split()[0] for line in undocumented(ast.parse(bad))] == ["the", "A", "A.b", "f"]
    assert MACHINE.search("see /" + "work/x") and not MACHINE.search("./work/x, my/work/x")
