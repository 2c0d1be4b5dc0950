"""`var-app` as far as it goes without a browser."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from var import hub
from var.app.panel import told
from var.errors import UserError
from var.scripts.app import Options, check, main


def config(*overrides: str) -> DictConfig:
    with initialize_config_module("var.configs", version_base="1.3"):
        return compose("app", overrides=[*overrides])


@pytest.fixture(autouse=True)
def gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio is there, as far as the command can tell."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "gradio" or find(name))


def test_all_shipped_models_are_offered() -> None:
    assert sorted(config().models) == hub.shipped()


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'var-toolkit\[app\]'"):
        main(config())


@pytest.mark.parametrize(
    "word", ["images=0", "queue=0", "concurrency=0", "loaded=0", "port=0", "upload_mb=0"]
)
def test_a_limit_that_lets_nothing_through_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=word.split("=")[0]):
        main(config(word))


@pytest.mark.parametrize(
    ("words", "warned"),
    [([], False), (["host=localhost"], False), (["host=0.0.0.0"], True), (["share=true"], True)],
)
def test_who_lets_strangers_in_is_warned(
    words: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check(Options(**config(*words)))
    assert ("no password" in caplog.text) == warned


def test_what_a_file_is_called_is_no_html() -> None:
    said: list[str] = []

    class Gradio:
        Warning, skip = said.append, dict

    def handler(_: Any) -> Iterator[Any]:
        yield ["fine", 1]
        raise UserError("cannot read\n<img src=x>.png")

    line = "cannot read &lt;img src=x&gt;.png"
    assert list(told(Gradio, 2, says=True)(handler)(0)) == [["fine", 1], [line, {}]]
    assert said == [line]
