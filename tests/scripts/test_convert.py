"""`var-convert`: a model goes through every form of files and makes the same image."""

import logging
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

import var
from var.errors import UserError
from var.scripts import convert
from var.scripts.convert import Options, main


def run(*overrides: str) -> None:
    """Run the command on the composed config, as other code would."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("convert", overrides=["progress=false", *overrides]))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)


def test_there_and_back_makes_the_same_image(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = var.load(run_folder)([1], seed=2)
    with caplog.at_level(logging.INFO, logger="var.scripts.convert"):
        run(f"model={run_folder}", "layout=diffusers", "out=there", "license=mit")
    assert "there/model_index.json" in caplog.text and "bytes in 11 files" in caplog.text
    run("model=there", "out=back")
    assert torch.equal(var.load("back")([1], seed=2), image)
    assert "license: mit" in Path("back/README.md").read_text()
    run("model=there", "out=half", "precision=bf16")
    kinds = {
        p.name: {t.dtype for t in load_file(p).values()} for p in Path("half").glob("*.safet*")
    }
    half, full = {torch.bfloat16}, {torch.float32}
    assert kinds == {"model.safetensors": half, "tokenizer.safetensors": full}


def test_published_and_exported_files_have_their_names(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"model={run_folder}", "layout=published", "out=published")
    found = {path.name for path in Path("published").iterdir()}
    assert found == {"var.safetensors", "vae.safetensors"}
    assert "blocks.1.attn.mat_qkv.weight" in load_file("published/var.safetensors")
    # What programs compute: see tests/test_exporting.py.
    small, asked = torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), list[int]()
    monkeypatch.setattr(convert, "export_decoder", lambda pipe: small)
    monkeypatch.setattr(convert, "export_step", lambda pipe, group: asked.append(group) or small)
    run(f"model={run_folder}", "layout=export", "out=all")
    run(f"model={run_folder}", "layout=export", "groups=[1]", "out=one")
    assert asked == [0, 1, 2, 1]
    assert {path.name for path in Path("one").iterdir()} == {"decoder.pt2", "step-001.pt2"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layout=onnx"], "unknown layout=onnx: there are run, diffusers, published, export"),
        (["groups=[0]"], "groups are for layout=export, not for layout=run"),
        (["layout=export", "license=mit"], "layout=export has no card that would name a license"),
        (["model=var-d16", "files=nowhere"], "files=nowhere is not a folder: .* files of var-d16"),
        (["out=."], "out=. is there already: name a new folder, or an empty one"),
        (["layout=export", "groups=[9]"], "there is no group 9: this model decides groups 0 to 2"),
        (["layout=export", "model=fashion-raster"], r"64 groups, .* groups=\[0,1\]"),
        (["layout=published", "model=fashion-vq"], "this MultiScaleVQ has no published form"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_left(
    run_folder: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(f"model={run_folder}", "out=new", *words)
    assert not Path("new").exists()


def test_the_help_names_every_option() -> None:
    with initialize_config_module("var.configs", version_base="1.3"):
        config = compose("convert", return_hydra_config=True)
    options = {each.name for each in fields(Options)}
    assert {*config} == options | {"hydra"}
    assert not [name for name in options if f"{name}=" not in config.hydra.help.template]
