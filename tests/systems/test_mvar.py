"""M-VAR as published: names and shapes of weights, sizes that only the files tell, errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.test_published import VAE, VAR, vae_state
from var.errors import UserError
from var.models.mvar import MVAR
from var.nn.mamba import Mamba2
from var.published import CHECKPOINTS, blueprint, build, load_published
from var.recipe import build as build_module
from var.systems import mvar

CONFIG = {**VAR, "cls": "MVAR"}
# What the published code says of its Mamba layers, whatever the size.
LAYERS = {"d_state": 64, "d_conv": 4, "expand": 2, "headdim": 64, "norm_eps": 1e-5}


def state(**changes: Any) -> dict[str, Tensor]:
    return mvar.publish(tiny.model(MVAR, **changes))


def both(model: dict[str, Tensor]) -> dict[str, Tensor]:
    states = {"mvar": model, "vae": vae_state()}
    return {f"{p}/{key}": tensor for p, each in states.items() for key, tensor in each.items()}


def built(given: dict[str, Tensor], **changes: Any) -> MVAR:
    made = build("mvar", {"vae": VAE, "mvar": {**CONFIG, **changes}}, given).model
    assert isinstance(made, MVAR)
    return made


def test_both_parts_are_built_from_one_state() -> None:
    parts = build("mvar", {"vae": VAE, "mvar": CONFIG}, both(state()))
    assert parts.schedule == tiny.SCHEDULE and hasattr(parts.tokenizer, "decoder")
    ours = tiny.model(MVAR).state_dict()
    assert isinstance(parts.model, MVAR)
    assert all(torch.equal(t, ours[key]) for key, t in parts.model.state_dict().items())


def test_the_published_names_and_shapes_are_those_of_the_specification() -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in state().items()}
    width, inner, steps = 32, 64, 1
    assert shapes["blocks.1.ada_lin.1.weight"] == (9 * width, width)
    layer = {key[15:]: shape for key, shape in shapes.items() if key.startswith("blocks.1.mamba.")}
    assert layer == {
        "dt_bias": (steps,),
        "A_log": (steps,),
        "D": (steps,),
        "in_proj.weight": (2 * inner + 2 * 64 + steps, width),
        "conv1d.weight": (inner + 2 * 64, 1, 4),
        "conv1d.bias": (inner + 2 * 64,),
        "norm.weight": (inner,),
        "out_proj.weight": (width, inner),
    }


def test_the_buffers_of_the_original_are_published_too() -> None:
    buffers = state()
    sizes = buffers["blocks.0.attn.patch_nums"]
    assert sizes.dtype == torch.int32 and sizes.tolist() == [1, 4, 9, 16]
    inside = buffers["attn_bias_for_masking"][0, 0]
    levels = buffers["lvl_1L"][0]
    assert torch.equal(inside == 0, levels[:, None] == levels[None])
    assert (inside[levels[:, None] != levels] == -torch.inf).all()


def test_the_variant_of_attention_is_what_the_state_holds() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "attn_l2_norm"}
    for l2_norm in (True, False):
        model = build("mvar", {"vae": VAE, "mvar": config}, state(l2_norm=l2_norm)).model
        assert any("scale.log" in name for name, _ in model.named_parameters()) == l2_norm


@pytest.mark.parametrize("depth", [1, 2])
def test_sizes_are_those_of_the_file_where_the_configuration_gives_no_width(depth: int) -> None:
    given = state(depth=depth, width=64 * depth, heads=depth)
    config = {k: v for k, v in CONFIG.items() if k not in ("embed_dim", "num_heads")}
    parts = build("mvar", {"vae": VAE, "mvar": {**config, "depth": 32}}, given)
    assert len(parts.model.blocks) == depth
    assert (parts.model_spec["width"], parts.model_spec["heads"]) == (64 * depth, depth)
    assert parts.model_spec["drop_path"] == pytest.approx(0.1 * depth / 24)


def test_a_released_file_of_another_depth_than_its_name_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name says 32, the commands of the authors 30: nobody could look."""
    width = {"vocab_size": tiny.VOCABULARY, "Cvae": tiny.CHANNELS, "num_classes": tiny.CLASSES}
    given = both(state(depth=2, width=128, heads=2))
    read = iter([{k[5:]: v for k, v in given.items() if k.startswith("mvar/")}, vae_state()])
    monkeypatch.setattr("var.published.locate", lambda *args: args[1])
    monkeypatch.setattr("var.published.read_state", lambda path: next(read))
    checkpoint = CHECKPOINTS["mvar-d32"]
    small = {"vae": VAE, "mvar": {**checkpoint.config["mvar"], **width, "patch_nums": tiny.LADDER}}
    monkeypatch.setitem(CHECKPOINTS, "mvar-d32", replace(checkpoint, config=small))
    parts = load_published("mvar-d32")
    assert len(parts.model.blocks) == 2


def test_a_state_of_another_depth_than_a_full_configuration_is_refused() -> None:
    with pytest.raises(UserError, match=r"missing: blocks\.2\."):
        built(state(), depth=3)


def test_forms_that_were_never_published_are_refused() -> None:
    with pytest.raises(UserError, match=r"no published form with d_state=16; published are .*=64"):
        built(state(), mamba={**LAYERS, "d_state": 16})
    with pytest.raises(UserError, match="no published form with shared_aln=True"):
        built(state(), shared_aln=True)
    with pytest.raises(UserError, match="unknown keys in the configuration of M-VAR: depht"):
        built(state(), depht=2)
    assert built(state(), mamba=LAYERS)


def test_a_file_of_something_else_is_told_by_its_keys() -> None:
    config = {k: v for k, v in CONFIG.items() if k not in ("embed_dim", "num_heads")}
    wrapped = {f"module.{key}": tensor for key, tensor in state().items()}
    for given in ({}, wrapped):
        with pytest.raises(UserError, match="the state of M-VAR does not fit .* missing: "):
            build("mvar", {"vae": VAE, "mvar": config}, given)


def test_what_was_never_published_is_not_made_to_look_so() -> None:
    with pytest.raises(UserError, match="M-VAR with shared_adaln has no published form"):
        state(shared_adaln=True)


def test_a_lone_layer_is_built_too() -> None:
    layer = Mamba2(32, state=16, head=32)
    config = {"cls": "Mamba2", "d_model": 32, "d_state": 16, "headdim": 32, "ngroups": 1}
    made = build("mvar", config, layer.state_dict()).model
    u = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(u)[0], layer(u)[0])
    with pytest.raises(UserError, match="no published form with ngroups=2"):
        build("mvar", {**config, "ngroups": 2}, layer.state_dict())
    with pytest.raises(UserError, match=r"1 missing: in_proj\.weight"):
        rest = {k: v for k, v in layer.state_dict().items() if k != "in_proj.weight"}
        build("mvar", config, rest)
    with pytest.raises(UserError, match="Mamba2: all sizes .* must be 1 or more"):
        build("mvar", {**config, "headdim": 0}, layer.state_dict())
    with pytest.raises(UserError, match="Mamba2: heads of 32 channels do not divide"):
        build("mvar", {**config, "d_model": 40}, layer.state_dict())


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.startswith("mvar")])
def test_published_sizes_have_the_published_number_of_parameters(name: str) -> None:
    model = build_module(blueprint(name).model_spec or {}, name)
    scales = sum(p.numel() for key, p in model.named_parameters() if key.endswith("scale.log"))
    count = sum(p.numel() for p in model.parameters())
    assert count == CHECKPOINTS[name].parameters and bool(scales) == (int(name[6:]) >= 24)
