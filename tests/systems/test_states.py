"""The way back: what was built of a published state becomes that state again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.systems import test_llamagen, test_mvar
from tests.test_published import VAE, VAR, both
from var import hub, published
from var.errors import UserError
from var.published import Checkpoint, build, load_published
from var.systems.states import published_states

State = dict[str, Tensor]
LLAMAGEN = {"model": test_llamagen.MODEL, "vq": test_llamagen.VQ_CONFIG}


def whole(states: dict[str, State]) -> State:
    """Return the states of several parts in one, prefixed."""
    return {f"{p}/{key}": tensor for p, state in states.items() for key, tensor in state.items()}


def given(system: str) -> tuple[dict[str, Any], State]:
    """Return a configuration and a published state, as strict loaders of the original want it."""
    if system == "llamagen":  # without what sampling leaves behind
        left = ("freqs_cis", "causal_mask", "kv_cache")
        state = {k: t for k, t in test_llamagen.both().items() if not any(w in k for w in left)}
        return LLAMAGEN, {**state, "vq/quantize.codebook_used": torch.zeros(65536)}
    hits = {
        "vae/quantize.ema_vocab_hit_SV": torch.zeros(len(VAE["v_patch_nums"]), VAE["vocab_size"])
    }
    if system == "var":
        return {"vae": VAE, "var": VAR}, {**both(), **hits}
    config = {"vae": VAE, "mvar": test_mvar.CONFIG}
    return config, {**test_mvar.both(test_mvar.state()), **hits}


@pytest.mark.parametrize("system", ["var", "mvar", "llamagen"])
def test_a_published_state_comes_back_to_the_last_key_and_bit(system: str) -> None:
    config, state = given(system)
    again = whole(published_states(build(system, config, dict(state))))
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        assert again[key].shape == tensor.shape and torch.equal(again[key], tensor), key


def test_converted_files_are_read_as_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, state = given("var")
    entry = Checkpoint("var", "a/b", {"var": "v.pth", "vae": "t.pth"}, config, None, 8)
    monkeypatch.setitem(published.CHECKPOINTS, "var-toy", entry)
    for prefix, part in published_states(build("var", config, dict(state))).items():
        save_file(part, tmp_path / f"{prefix}.safetensors")
    again = whole(published_states(load_published("var-toy", tmp_path)))
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_what_was_never_published_is_refused() -> None:
    with pytest.raises(UserError, match=r"this MultiScaleVQ has no published form: .*standard"):
        published_states(hub.find("digits-vq"))
    with pytest.raises(UserError, match="a KL cannot be written as published: there are VAR, MVAR"):
        published_states(hub.find("fashion-kl"))
