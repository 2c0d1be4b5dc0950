"""The documentation is built without a warning, holds what is public, and fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import var
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, as they are published; one that is not in the navigation is a warning."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name)
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return place


class Fetched(HTMLParser):
    """What a browser loads when it shows a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "link"):
            self.found.append(given.get("src") or given.get("href") or "")


def test_every_page_and_picture_is_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("")
        home = place.parent if place.name == "index" else place
        assert (site / home / "index.html").is_file(), page
    for picture in DOCS.rglob("*.png"):
        assert (site / picture.relative_to(DOCS)).is_file(), picture


def test_all_that_is_public_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text("utf-8") for page in (site / "reference").rglob("*.html"))
    there = set(re.findall(r'id="(var\.[\w.]+)"', pages))
    public = {f"var.{name}" for name in var.__all__ if not name.startswith("_")}
    assert public <= there
    assert "var.tokenizers.tokenizer.Tokenizer.encode" in there, "methods, and linked folders too"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not [what for what in Fetched(page).found if re.match(r"(https?:)?//", what)], page
    for style in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import )[\"']?([^\"')]*)", style.read_text("utf-8"))
        assert not [what for what in addresses if re.match(r"(https?:)?//", what)], style


def test_pages_have_one_title_and_pictures_words() -> None:
    for page in DOCS.rglob("*.md"):
        text = re.sub(r"^( *)(```|~~~).*?^\1\2$", "", page.read_text("utf-8"), flags=re.M | re.S)
        assert len(re.findall(r"^# ", text, re.M)) == 1, page
        assert not re.search(r"!\[ *\]", text), f"{page}: a picture without words"
