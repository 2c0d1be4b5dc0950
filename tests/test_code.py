"""CoDe's published pairs: what their states become, and what `var.load` makes of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import var
from tests import tiny
from tests.test_published import VAE, VAR, vae_state
from var import hub, published
from var.decoding.collaborative import Collaborative
from var.errors import UserError
from var.published import CHECKPOINTS, build
from var.sampling import Sampling
from var.systems import var_keys

CONFIG = {"vae": VAE, "drafter": {**VAR, "depth": 3}, "refiner": VAR}


def state(*prefixes: str) -> dict[str, Tensor]:
    parts = {
        "drafter": var_keys.publish(tiny.model(depth=3)),
        "refiner": var_keys.publish(tiny.model()),
        "vae": vae_state(),
    }
    return {f"{p}/{key}": tensor for p in prefixes for key, tensor in parts[p].items()}


def test_all_parts_are_built_from_one_state() -> None:
    parts = build("code", CONFIG, state("drafter", "refiner", "vae"))
    assert len(parts.model.blocks) == 3 and len(parts.closer.blocks) == 2
    assert parts.model_spec["depth"] == 3 and parts.closer_spec["depth"] == 2
    assert parts.schedule == tiny.SCHEDULE and hasattr(parts.tokenizer, "encoder")


def test_a_refiner_alone_is_the_model() -> None:
    parts = build("code", CONFIG, state("refiner"))
    assert len(parts.model.blocks) == 2
    assert parts.closer is None and parts.tokenizer is None and parts.schedule == tiny.SCHEDULE


def test_the_tokenizer_can_come_alone() -> None:
    parts = build("code", {"vae": VAE}, state("vae"))
    assert parts.tokenizer is not None and parts.model is None
    assert parts.schedule == tiny.SCHEDULE


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vae": VAE}, "missing keys in the configuration of CoDe: refiner"),
        ({"refiner": VAR}, "missing keys in the configuration of CoDe: vae"),
        ({**CONFIG, "mid": VAR}, "unknown keys in the configuration of CoDe: mid"),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("code", config, state("refiner"))


def test_halves_of_different_ladders_are_refused() -> None:
    other = {f"refiner/{k}": t for k, t in var_keys.publish(tiny.model(ladder=(1, 2, 4))).items()}
    config = {**CONFIG, "refiner": {**VAR, "patch_nums": (1, 2, 4)}}
    with pytest.raises(UserError, match="of different ladders"):
        build("code", config, {**state("drafter"), **other})


@pytest.mark.parametrize("switch", [6, 7, 8, 9])
def test_a_published_pair_recommends_itself(switch: int) -> None:
    drafter = CHECKPOINTS[f"code-{switch}"]
    assert drafter.decoding is not None and drafter.decoding["switch"] == switch
    refiner = CHECKPOINTS[drafter.decoding["closer"]]
    assert drafter.files["var"] == f"drafter_{switch}.pth"
    assert refiner.files["var"] == f"refiner_{switch}.pth" and refiner.decoding is None
    assert drafter.files["vae"] == refiner.files["vae"]
    sampling = Sampling(**drafter.sampling)
    assert [sampling.at(k).temperature for k in range(10)] == [1.1] * 7 + [1.0] * 3


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a tiny pair, listed as `pair` and `pair-refiner`."""
    torch.save(var_keys.publish(tiny.model(depth=3)), tmp_path / "drafter.pth")
    torch.save(var_keys.publish(tiny.model()), tmp_path / "refiner.pth")
    torch.save(vae_state(), tmp_path / "vae.pth")
    decoding = {"name": "collaborative", "closer": "pair-refiner", "switch": 2}
    for name, half, depth in (("pair", "drafter", 3), ("pair-refiner", "refiner", 2)):
        entry = replace(
            CHECKPOINTS["code-8"],
            files={"var": f"{half}.pth", "vae": "vae.pth"},
            config={"vae": VAE, "var": {**VAR, "depth": depth}},
            sampling={"guidance": 1.5, "temperature": (1.1, 1.0, 1.0, 1.0)},
            decoding=decoding if half == "drafter" else None,
        )
        monkeypatch.setitem(published.CHECKPOINTS, name, entry)
    return tmp_path


def test_a_published_pair_decodes_collaboratively_by_itself(released: Path) -> None:
    pipe = var.load("pair", files=released)
    closer = var.load("pair-refiner", files=released)
    both = Collaborative(pipe.model, closer.model, switch=2)
    assert torch.equal(pipe([0, 1]), pipe([0, 1], decoding=both))
    assert not torch.equal(pipe([0, 1]), pipe([0, 1], decoding="sequential"))
    assert pipe.companion("pair-refiner").run.tokenizer is pipe.run.tokenizer


def test_a_saved_pair_still_names_its_companion(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = var.load("pair", files=released)
    pipe.save(tmp_path / "own")
    again = var.load(tmp_path / "own", files=released)
    assert torch.equal(again([0, 1]), pipe([0, 1]))
    monkeypatch.delitem(hub.CHECKPOINTS, "pair-refiner")
    with pytest.raises(UserError, match="no model named pair-refiner"):
        var.load(tmp_path / "own")([0])
    assert var.load(tmp_path / "own")([0], decoding="sequential").shape == (1, 3, 8, 8)
