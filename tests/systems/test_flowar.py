"""FlowAR as published: names and shapes of weights, configurations, and the same numbers again."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny, tiny_flowar
from tests.tiny_flowar import CHANNELS, HEAD_WIDTH, LADDER, MODEL, VAE, WIDTH, model, state
from var import recipe
from var.condition import Condition
from var.errors import UserError
from var.heads.flow_net import CrossBlock, FlowNet, SpatialBlock
from var.models.flowar import FlowAR
from var.published import build
from var.schedule import Schedule
from var.systems import flowar, flowar_keys
from var.systems.base import Parts
from var.tokenizers.continuous import KL

SCHEDULE = Schedule.scales(LADDER)
KINDS = pytest.mark.parametrize("cross", [False, True], ids=["spatial", "cross"])


def built(cross: bool = False, given: dict[str, Tensor] | None = None, **changes: Any) -> Parts:
    config = {"model": {**MODEL, "cross": cross, **changes}}
    return build("flowar", config, state(cross) if given is None else given)


@torch.no_grad()
def features(made: nn.Module) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(3, SCHEDULE.starts[-1], CHANNELS, generator=rng)
    return made(x, SCHEDULE[:], Condition(torch.tensor([7, 999, -1])))


@torch.no_grad()
def velocities(net: FlowNet, h: Tensor) -> Tensor:
    x = torch.randn(3, h.shape[1], CHANNELS, generator=torch.Generator().manual_seed(6))
    t = torch.tensor([[0.1, 0.5, 0.9]] * 3)
    return net(x, net.clock(t), net.meet(h, SCHEDULE[:]))


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return {**weights, f"{name}.bias": (outputs,)} if bias else weights


def published_block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    hidden = int(4 * width * 2 / 3)
    return {
        **linear(f"{name}.attn.proj", width, width),
        **linear(f"{name}.mlp.fc1_g", hidden, width),
        **linear(f"{name}.mlp.fc1_x", hidden, width),
        **linear(f"{name}.mlp.fc2", width, hidden),
    }


def published_head(cross: bool, width: int, source: int, depth: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        **linear("time_embed.mlp.0", width, 256),
        **linear("time_embed.mlp.2", width, width),
        **linear("cond_embed", width, source),
        **linear("input_proj", width, CHANNELS),
        **linear("final_layer.linear", CHANNELS, width),
        **linear("final_layer.adaLN_modulation.1", 2 * width, width),
    }
    for i in range(depth):
        name = f"res_blocks.{i}"
        shapes |= published_block(name, width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width, bias=False)
        if not cross:
            shapes |= linear(f"{name}.ada_lin", 6 * width, width)
            continue
        shapes |= linear(f"{name}.crossattn.q", width, width, bias=False)
        shapes |= linear(f"{name}.crossattn.kv", 2 * width, source, bias=False)
        shapes |= linear(f"{name}.crossattn.proj", width, width)
        shapes |= {f"{name}.norm2_1.weight": (width,), f"{name}.norm2_2.weight": (source,)}
        shapes |= linear(f"{name}.ada_lin_attn", 3 * width, width)
        shapes |= linear(f"{name}.ada_lin_mlp", 3 * width, width)
    return shapes


def published_shapes(cross: bool) -> dict[str, tuple[int, ...]]:
    """Return the published names and shapes of weights (section 2), without what is derived."""
    shapes: dict[str, tuple[int, ...]] = {"class_emb.weight": (1001, WIDTH)}
    for name in ("encoder", "decoder", "diffusion"):
        shapes[f"{name}_pos_embed_learned"] = (1, 21, WIDTH)
    for name in ("z_proj_ln", "encoder_norm", "decoder_norm"):
        shapes[f"{name}.weight"] = (WIDTH,)
    shapes |= linear("z_proj", WIDTH, CHANNELS) | linear("decoder_embed", WIDTH, WIDTH)
    for name in ("encoder_blocks.0", "encoder_blocks.1", "decoder_blocks.0"):
        shapes |= published_block(name, WIDTH)
        shapes |= linear(f"{name}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= linear(f"{name}.ada_lin.1", 6 * WIDTH, WIDTH)
    head = published_head(cross, HEAD_WIDTH, WIDTH, depth=2)
    return shapes | {f"flownet.{name}": shape for name, shape in head.items()}


@KINDS
def test_weights_have_the_published_names_and_shapes(cross: bool) -> None:
    published = flowar_keys.MODEL.publish(model(cross).state_dict())
    assert {name: tuple(t.shape) for name, t in published.items()} == published_shapes(cross)


@KINDS
def test_a_published_state_makes_the_same_numbers(cross: bool) -> None:
    parts, ours = built(cross), model(cross)
    assert parts.schedule == SCHEDULE and parts.tokenizer is None
    h = features(ours)
    assert parts.model is not None and torch.equal(features(parts.model.eval()), h)
    assert h.std() > 0.1
    net = parts.model.head.net
    assert torch.equal(velocities(net, h), velocities(ours.head.net, h))
    assert velocities(net, h).std() > 0.1


def test_what_follows_from_the_configuration_may_be_left_out() -> None:
    whole = state(cross=True)
    weights = {k: t for k, t in whole.items() if k != "mask" and not k.endswith("rope.freqs")}
    assert len(whole) - len(weights) == 1 + 3 + 4
    assert torch.equal(features(built(True, weights).model.eval()), features(model(True)))  # type: ignore[union-attr]


@KINDS
def test_the_spec_rebuilds_the_model(cross: bool) -> None:
    parts = built(cross)
    assert parts.model_spec is not None and parts.model is not None
    again = recipe.build(parts.model_spec, "it")
    assert {k: t.shape for k, t in again.state_dict().items()} == {
        k: t.shape for k, t in parts.model.state_dict().items()
    }


def test_what_the_original_constructor_defaults_to_is_the_default() -> None:
    bare = {key: MODEL[key] for key in MODEL if key.startswith(("encoder", "decoder"))}
    spec = flowar.blueprint({"vae": VAE, "model": bare}).model_spec
    assert spec is not None
    expected = {
        "channels": 16, "ladder": (1, 2, 4, 8, 16), "mlp_ratio": 4.0, "head_depth": 3,
        "head_width": 1024, "cross": False, "drop": 0.1, "attention_drop": 0.1, "classes": 1000,
    }  # fmt: skip
    assert {name: spec[name] for name in expected} == expected


def test_a_state_without_a_head_makes_a_model_without_one() -> None:
    weights = {k: t for k, t in state().items() if not k.startswith("flownet.")}
    parts = built(given=weights)
    assert isinstance(parts.model, FlowAR) and not [*parts.model.head.parameters()]
    assert torch.equal(features(parts.model.eval()), features(model()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_blocks.1.mlp.fc1_g.bias": None}, "1 missing: encoder_blocks.1.mlp.fc1_g.bias$"),
        ({"flownet.cond_embed.weight": None}, "1 missing: flownet.cond_embed.weight$"),
        ({"diffusion_pos_embed_learned": None}, "1 missing: diffusion_pos_embed_learned$"),
        ({"z_proj_ln.bias": torch.zeros(WIDTH)}, "1 unexpected: z_proj_ln.bias$"),
        (
            {"encoder_blocks.2.attn.proj.bias": torch.zeros(WIDTH)},
            "1 unexpected: encoder_blocks.2.attn.proj.bias$",
        ),
        (
            {"class_emb.weight": torch.zeros(11, WIDTH)},
            r"1 of another shape: class_emb.weight \(11, 16\) instead of \(1001, 16\)$",
        ),
        (
            {"encoder_pos_embed_learned": torch.zeros(1, 341, WIDTH)},
            r"1 of another shape: encoder_pos_embed_learned .* instead of \(1, 21, 16\)$",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_published_names(
    change: dict, message: str
) -> None:
    given = {key: t for key, t in {**state(), **change}.items() if t is not None}
    with pytest.raises(
        UserError, match=f"state of FlowAR does not fit its configuration: {message}"
    ):
        built(given=given)


def test_the_head_of_the_other_kind_is_refused() -> None:
    with pytest.raises(UserError, match="missing: flownet.res_blocks.0.ada_lin_attn.bias"):
        built(True, state(cross=False))
    with pytest.raises(UserError, match="unexpected: flownet.res_blocks.0.ada_lin_attn.bias"):
        built(False, state(cross=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_embed_dim": 32}, "decoder_embed_dim=32 cannot be run: it must be 16"),
        ({"buffer_size": 64}, "buffer_size=64 cannot be run: it must be 0"),
        ({"patch_size": 2}, "patch_size=2 cannot be run: it must be 1"),
        ({"colour": 1}, "unknown keys in the configuration of FlowAR: colour"),
        ({"encoder_num_heads": 3}, "FlowAR cannot be built of these: 3 heads do not divide"),
    ],
)
def test_a_wrong_configuration_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        built(**changes)
    assert "\n" not in str(caught.value)


def test_settings_without_effect_have_none() -> None:
    idle = {"class_num": 10, "qk_norm": True, "use_checkpoint": True, "label_drop_prob": 0.5}
    idle |= {"img_size": 64, "vae_stride": 16, "buffer_size": 0, "patch_size": 1}
    assert built(**idle).model_spec == built().model_spec


def test_what_is_missing_in_a_configuration_is_named() -> None:
    short = {key: value for key, value in MODEL.items() if key != "decoder_depth"}
    with pytest.raises(UserError, match="missing keys in the configuration of FlowAR: decoder_dep"):
        build("flowar", {"model": short}, state())
    with pytest.raises(UserError, match="expected model, head, block, vae or runs; got colour"):
        build("flowar", {"colour": 1}, state())


@KINDS
def test_a_head_alone_is_built(cross: bool) -> None:
    keys = {"in_channels": CHANNELS, "out_channels": CHANNELS, "z_channels": WIDTH}
    keys |= {"model_channels": HEAD_WIDTH, "num_res_blocks": 2, "cross": cross}
    given = {k.removeprefix("flownet."): t for k, t in state(cross).items() if "flownet." in k}
    net = build("flowar", {"head": keys}, given).model
    h = features(model(cross))
    assert isinstance(net, FlowNet)
    assert torch.equal(velocities(net, h), velocities(model(cross).head.net, h))
    del given["input_proj.bias"]
    with pytest.raises(UserError, match="state of the flow head .* 1 missing: input_proj.bias$"):
        build("flowar", {"head": keys}, given)


@pytest.mark.parametrize(("name", "kind"), [("Block_v1", SpatialBlock), ("Block_v2", CrossBlock)])
def test_a_block_alone_is_built(name: str, kind: type[nn.Module]) -> None:
    ours = tiny.shaken(kind(16, 2, 12), scale=0.2)  # type: ignore[call-arg]
    given = flowar_keys.BLOCK.publish(ours.state_dict())
    config = {"cls": name, "block": {"dim": 16, "num_heads": 2, "semantic_dim": 12}}
    block = build("flowar", config, given).model
    assert isinstance(block, kind)
    assert all(torch.equal(t, ours.state_dict()[key]) for key, t in block.state_dict().items())
    with pytest.raises(UserError, match="unknown cls Block_v3; there are: Block_v1, Block_v2"):
        build("flowar", {**config, "cls": "Block_v3"}, given)


def test_of_several_runs_with_one_model_the_first_counts() -> None:
    config = {"model": {**MODEL, "cross": True}}
    parts = build("flowar", {"runs": {"plain": config, "guided": {}}}, state(cross=True))
    assert parts.model_spec == built(True).model_spec


def test_model_and_autoencoder_are_built_from_one_state() -> None:
    config = {"model": MODEL, "vae": VAE}
    both = {f"model/{key}": tensor for key, tensor in state().items()}
    both |= {f"vae/{key}": tensor for key, tensor in tiny_flowar.vae_state().items()}
    parts = build("flowar", config, both)
    assert isinstance(parts.model, FlowAR) and isinstance(parts.tokenizer, KL)
    assert parts.schedule == SCHEDULE and parts.tokenizer.channels == CHANNELS
    assert torch.equal(features(parts.model.eval()), features(model()))
    assert parts.tokenizer_spec == flowar.blueprint(config).tokenizer_spec | {
        "encoder": True, "decoder": True,
    }  # fmt: skip
    with pytest.raises(UserError, match="mask begins with none of: model/, vae/"):
        build("flowar", config, {**both, "mask": torch.zeros(1)})


def test_a_model_and_an_autoencoder_of_other_latents_are_refused() -> None:
    both = {f"model/{key}": tensor for key, tensor in state().items()}
    both |= {f"vae/{key}": tensor for key, tensor in tiny_flowar.vae_state().items()}
    config = {"model": {**MODEL, "vae_embed_dim": CHANNELS + 1}, "vae": VAE}
    both["model/z_proj.weight"] = torch.zeros(len(both["model/z_proj.bias"]), CHANNELS + 1)
    for name in ("input_proj.weight", "final_layer.linear.weight", "final_layer.linear.bias"):
        key, dim = f"model/flownet.{name}", 1 if "input" in name else 0
        shape = list(both[key].shape)
        shape[dim] = CHANNELS + 1
        both[key] = torch.zeros(shape)
    with pytest.raises(UserError, match=f"for {CHANNELS + 1} latent channels, .* has {CHANNELS}"):
        build("flowar", config, both)
