"""Files of published checkpoints: wrapped states, several names, several repositories."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from var import published
from var.errors import UserError
from var.published import CHECKPOINTS, load_published
from var.systems.base import Parts
from var.systems.files import locate, read_state

STATE = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE},
        {"module": STATE},
        {"state_dict": STATE},
        {"epoch": 3, "global_step": 9, "state_dict": STATE, "version": "1.2", "args": None},
        {"model": {key: torch.nn.Parameter(tensor) for key, tensor in STATE.items()}},
        {"model": STATE["a"], "a": STATE["a"], "b.c": STATE["b.c"]},
    ],
)
def test_a_wrapped_state_is_unwrapped(content: dict, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    state = read_state(tmp_path / "x.ckpt")
    assert state.keys() - {"model"} == STATE.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in STATE.items())


@pytest.mark.parametrize(
    ("content", "inside"),
    [
        ({"model": STATE, "model_ema": STATE}, "model, model_ema"),
        ({"model": {"deep": STATE}}, "model"),
        ({"weights": STATE}, "weights"),
        ({"model": STATE, "optimizer": {"state": {}}}, "model, optimizer"),
        ({"epoch": 3}, "epoch"),
        ({"model": None}, "model"),
        ([1, 2], "list"),
    ],
)
def test_what_may_mean_several_things_is_refused(
    content: object, inside: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=f"x.ckpt is no flat state dict .* holds: {inside}$"):
        read_state(tmp_path / "x.ckpt")


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path("bomb"), "boom"))


def test_a_wrapper_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "args": Bomb()}, "x.ckpt")
    with pytest.raises(UserError, match="no checkpoint"):
        read_state(Path("x.ckpt"))
    assert not Path("bomb").exists()


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is asked of the hub; it has everything."""
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, file: str) -> str:
        asked.append((repository, file))
        save_file({f"of {file}": torch.ones(1)}, tmp_path / "fetched.safetensors")
        return str(tmp_path / "fetched.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return asked


def test_a_file_may_go_by_several_names(tmp_path: Path, fetched: list) -> None:
    names = ("kl16.ckpt", "kl16.safetensors")
    assert locate("a/b", names, tmp_path).name == "fetched.safetensors"
    assert locate("a/b", names).name == "fetched.safetensors"
    assert fetched == [("a/b", "kl16.safetensors")] * 2
    for name in reversed(names):
        (tmp_path / name).touch()
        assert locate("a/b", names, tmp_path) == tmp_path / name
    assert len(fetched) == 2


def test_files_of_a_checkpoint_may_lie_in_two_repositories(
    tmp_path: Path, fetched: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = replace(
        CHECKPOINTS["var-d16"],
        repository="one/place",
        files={"var": "model.pth", "vae": ("vae.ckpt", "vae.safetensors")},
        repositories={"vae": "another/place"},
    )
    built: list[list[str]] = []
    monkeypatch.setitem(published.CHECKPOINTS, "toy", toy)
    monkeypatch.setattr(
        published, "build", lambda system, config, state: built.append([*state]) or Parts()
    )
    load_published("toy", tmp_path)
    assert fetched == [("one/place", "model.pth"), ("another/place", "vae.safetensors")]
    torch.save({"model": STATE}, tmp_path / "vae.ckpt")
    load_published("toy", tmp_path)
    assert fetched[2:] == [("one/place", "model.pth")]
    assert built == [
        ["var/of model.pth", "vae/of vae.safetensors"],
        ["var/of model.pth", "vae/a", "vae/b.c"],
    ]
