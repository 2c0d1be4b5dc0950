"""`var-sample`: the real configs, the real command line, real PNGs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image

import var
from tests.scripts.options import option_names
from var import drawing
from var.devices import parse_precision
from var.errors import UserError
from var.pixels import to_uint8
from var.png import read_settings
from var.scripts.sample import main


def run(*overrides: str) -> None:
    """Run the command on the composed config, as other code would."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("sample", overrides=["progress=false", *overrides]))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def pixels(path: str | Path) -> torch.Tensor:
    """Return the image (3, H, W) uint8 in a file."""
    with Image.open(path) as image:
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def test_one_command_leaves_one_grid_and_nothing_else(run_folder: Path, place: Path) -> None:
    run(f"model={run_folder}", "number=2", "upscale=3")
    assert os.listdir(place) == ["samples.png"]
    assert pixels("samples.png").shape == (3, 3 * 24 + 2 * 2, 2 * 24 + 2)
    assert read_settings("samples.png")["labels"] == [0, 1, 2]


def test_a_folder_holds_single_images(run_folder: Path) -> None:
    run(f"model={run_folder}", "out=new/folder", "labels=[cat,-1,t-shirt/top]", "grid=true")
    names = ["000000_cat.png", "000001_none.png", "000002_t-shirt-top.png", "grid.png"]
    assert sorted(os.listdir("new/folder")) == names
    tiles = [pixels(f"new/folder/{name}") for name in names[:3]]
    assert torch.equal(pixels("new/folder/grid.png")[:, :, 10:18], tiles[1])


def test_the_settings_in_a_file_make_its_image_again(run_folder: Path) -> None:
    run(
        f"model={run_folder}", "out=folder", "labels=[dog]", "number=3", "seed=4",
        "sampling.guidance=0.5", "sampling.temperature=0.9", "sampling.top_p=0.9",
    )  # fmt: skip
    for path in Path("folder").iterdir():
        note = read_settings(path)
        dtype = parse_precision(note["precision"], torch.device("cpu"))
        pipe = var.load(note["model"], dtype=dtype)
        image = pipe(note["labels"], seed=note["seed"], **note["sampling"])
        assert torch.equal(to_uint8(image)[0], pixels(path))
    assert note["version"] == var.__version__
    assert note["sampling"] == {
        "guidance": [1.0, 1.5], "temperature": 0.9, "top_k": 20, "top_p": 0.9, "temper_last": False,
        "smooth": False
    }  # fmt: skip


def test_batch_size_and_cache_do_not_change_the_images(run_folder: Path) -> None:
    run(f"model={run_folder}", "number=3", "out=a.png")
    run(f"model={run_folder}", "number=3", "out=b.png", "batch_size=2", "cache=dense")
    assert torch.equal(pixels("a.png"), pixels("b.png"))


def test_two_models_work_together_and_the_note_says_which(run_folder: Path) -> None:
    # The same weights in another folder: twins, of which the images are known.
    shutil.copytree(run_folder, "twin")
    run(f"model={run_folder}", "out=alone.png", "labels=[dog]")
    together = ["decoding=collaborative", "decoding.closer=twin", "decoding.switch=2"]
    run(f"model={run_folder}", "out=both.png", "labels=[dog]", *together)
    assert torch.equal(pixels("alone.png"), pixels("both.png"))
    note = read_settings("both.png")
    assert note["decoding"] == {"name": "collaborative", "closer": "twin", "switch": 2}
    pipe = var.load(note["model"])
    image = pipe(note["labels"], seed=0, decoding=note["decoding"], **note["sampling"])
    assert torch.equal(to_uint8(image)[0], pixels("both.png"))
    assert read_settings("alone.png")["decoding"] == {"name": "sequential"}


def test_the_note_says_what_was_recommended(run_folder: Path) -> None:
    shutil.copytree(run_folder, "twin")
    advice = {"name": "collaborative", "closer": "twin", "switch": 1}
    with (run_folder / "config.yaml").open("a") as file:
        file.write(f"decoding: {advice}\n")
    run(f"model={run_folder}", "labels=[dog]")
    assert read_settings("samples.png")["decoding"] == advice
    run(f"model={run_folder}", "labels=[dog]", "decoding=sequential")
    assert read_settings("samples.png")["decoding"] == {"name": "sequential"}


def test_steps_of_a_solver_are_told_from_those_to_be_shown(run_folder: Path) -> None:
    with pytest.raises(UserError, match=r"steps=8: true shows .* sampling\.steps"):
        run(f"model={run_folder}", "steps=8")


def test_steps_show_how_images_form(run_folder: Path) -> None:
    run(f"model={run_folder}", "out=steps.png", "steps=true")
    run(f"model={run_folder}", "out=final.png", "columns=1")
    assert torch.equal(pixels("steps.png")[:, :, 20:], pixels("final.png"))
    assert pixels("steps.png").shape == (3, 28, 28)


def test_memory_running_out_does_not_stop_the_command(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(f"model={run_folder}", "out=a.png")
    rng = drawing.Rng

    def cramped(seeds: list[int], device: torch.device) -> drawing.Rng:
        if len(seeds) > 1:
            raise torch.OutOfMemoryError
        return rng(seeds, device)

    monkeypatch.setattr(drawing, "Rng", cramped)
    run(f"model={run_folder}", "out=b.png")
    assert torch.equal(pixels("a.png"), pixels("b.png"))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command as if typed; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["var-sample", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


FAULTS = {
    "labels=[dgo]": "unknown class 'dgo': did you mean 'Dog'?",
    "labels=[3]": "unknown class 3: ids are 0..2, or -1 for none",
    "labels=[]": "labels=[] names no class: there is nothing to draw",
    "model=missing": "there is no run folder and no model named missing (",
    "sampling.top_k=-1": "sampling: top_k must be 0 (off) or a positive whole number, got -1",
    "sampling.temperature=0": "sampling: temperature must be positive, got 0",
    "sampling.guidance=much": "sampling: ",
    "+sampling.depth=1": "sampling: unknown depth; known are guidance, guided_groups,",
    "out=file/x.png": "cannot write file/x.png: file is not a folder that can be written to",
    "out=file/x/y": "cannot write file/x/y: file is not a folder that can be written to",
    "out=file": "cannot write file: file is not a folder that can be written to",
    "out=x.jpg": "out=x.jpg: images are written as PNG; name a file *.png or a folder",
    "out='x-${sed}.png'": "Interpolation key 'sed' not found",
    "precision=fp8": "unknown precision 'fp8': there are auto, fp32, bf16, fp16",
    "device=tpu": "unknown device 'tpu': use auto, cpu, cuda or cuda:<number>",
    "device=cuda:99": "device cuda:99 is not there: PyTorch sees",
    "number=0": "number must be 1 or more, got 0",
    "seed=-1": "seed must be 0 or more, got -1",
    "number=many": "Value 'many' of type 'str' could not be converted to Integer",
    "+colour=red": "Key 'colour' not in 'Options'",
}


@pytest.mark.parametrize("word", FAULTS)
def test_a_fault_of_the_user_is_one_line(
    word: str,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("file").touch()
    assert command(monkeypatch, f"model={run_folder}", "progress=false", word) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"var-sample: error: {FAULTS[word]}")
    assert text.count("\n") == 1
    assert os.listdir() == ["file"]


def test_called_with_a_config_the_command_raises(run_folder: Path) -> None:
    with pytest.raises(UserError, match="number must be 1 or more"):
        run(f"model={run_folder}", "number=0")


def test_truncated_weights_are_one_line(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(run_folder / "model.safetensors", 1000)
    assert command(monkeypatch, f"model={run_folder}") == 2
    text = capsys.readouterr().err
    assert re.fullmatch(r"var-sample: error: .*model\.safetensors is damaged, perhaps .*\n", text)


def test_faults_of_ours_are_not_hidden(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("var.scripts.sample.load", lambda *_, **__: 1 / 0)
    assert command(monkeypatch, f"model={run_folder}") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_key_press_stops_quietly(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("var.scripts.sample.load", stop)
    assert command(monkeypatch, f"model={run_folder}") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_explains_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert not [name for name in option_names("sample") if name not in text]
    assert "var-sample model=fashion-var labels=[sneaker,bag]" in text and "${seed}" in text


def test_jobs_of_a_sweep_do_not_overwrite_each_other(
    run_folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = ["--multirun", f"model={run_folder}", "progress=false", "seed=0,1"]
    assert command(monkeypatch, *words, "out=a.png") == 0
    assert command(monkeypatch, *words, "out=folder") == 0
    assert command(monkeypatch, *words, "out='b-${seed}.png'") == 0
    names = ["a-0.png", "a-1.png", "b-0.png", "b-1.png", "folder-0", "folder-1"]
    assert sorted(os.listdir(place)) == names
    assert [read_settings(f"a-{i}.png")["seed"] for i in range(2)] == [0, 1]
    assert torch.equal(pixels("a-1.png"), pixels("b-1.png"))


def test_two_processes_make_the_images_of_one(run_folder: Path) -> None:
    words = [f"model={run_folder}", "number=3", "grid=true", "device=cpu", "progress=false"]
    run(*words, "out=one")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    subprocess.run(
        [sys.executable, "-m", *launcher, "var.scripts.sample", *words, "out=two"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(var.__file__).parents[1])},
    )
    names = sorted(os.listdir("one"))
    assert names == sorted(os.listdir("two")) and len(names) == 10
    for name in names:
        assert torch.equal(pixels(f"one/{name}"), pixels(f"two/{name}"))
        assert read_settings(f"one/{name}") == read_settings(f"two/{name}")
