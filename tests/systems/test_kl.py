"""Published KL autoencoders: the key table, the halves, and the same numbers under other names."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from var import recipe
from var.errors import UserError
from var.schedule import Schedule
from var.systems import kl
from var.tokenizers import autoencoder
from var.tokenizers.continuous import KL

MAPS = json.loads((Path(__file__).parents[1] / "golden/flowar/kl16_key_map.json").read_text())
CONFIGS = {"kl16": kl.KL16, "tiny_visible": MAPS["tiny_visible"]["upstream_config"]}
VAE = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "resolution": 16,
    "embed_dim": 4,
    "enc_attn_resolutions": [8],
    "dec_attn_resolutions": [8],
}


def built(vae: dict[str, Any]) -> KL:
    spec = kl.blueprint({"vae": vae}).tokenizer_spec
    assert spec is not None
    made = recipe.build(spec, "it")
    assert isinstance(made, KL)
    return made


def relatives() -> tuple[autoencoder.Encoder, autoencoder.Decoder]:
    """Return the halves of VAR's autoencoder: of the same family, with weights of the same names.

    Attention is where `VAE` has it: in the last level of the encoder and of the decoder.
    """
    size = {"width": 32, "multipliers": (1, 2), "blocks": 1}
    encoder, decoder = (
        autoencoder.Encoder(channels=8, **size),
        autoencoder.Decoder(channels=4, **size),
    )
    tiny.shaken(encoder, scale=0.08, seed=1)
    tiny.shaken(decoder, scale=0.08, seed=2)
    return encoder.eval(), decoder.eval()


def published() -> dict[str, Tensor]:
    """Return the state of the relatives as published, and convolutions that quantise."""
    rng, state = torch.Generator().manual_seed(3), dict[str, Tensor]()
    for half, module in zip(("encoder", "decoder"), relatives(), strict=True):
        for key, tensor in module.state_dict().items():
            if ".qkv." in key:
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{half}.{key.replace('qkv', letter)}"] = part
            else:
                state[f"{half}.{key}"] = tensor
    for name, width in (("quant_conv", 8), ("post_quant_conv", 4)):
        state[f"{name}.weight"] = torch.randn(width, width, 1, 1, generator=rng)
        state[f"{name}.bias"] = torch.randn(width, generator=rng)
    return state


def half(name: str) -> dict[str, Tensor]:
    convolution = {"encoder": "quant_conv", "decoder": "post_quant_conv"}[name]
    return {k: t for k, t in published().items() if k.startswith((f"{name}.", f"{convolution}."))}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_recorded_key_is_mapped(name: str) -> None:
    vae, recorded = CONFIGS[name], MAPS[name]["map"]
    table = kl.table(len(vae["ch_mult"]))
    ours = built(vae).vae.state_dict()
    expected = {key: torch.empty(shape, device="meta") for key, (_, shape, _) in recorded.items()}
    published = table.publish(ours)
    assert {k: t.shape for k, t in published.items()} == {k: t.shape for k, t in expected.items()}
    for key, (theirs, shape, squeezed) in recorded.items():
        ((adopted, tensor),) = table.adopt({key: expected[key]}).items()
        assert adopted == theirs
        assert list(tensor.shape) == (shape[:2] if squeezed else shape) == list(ours[theirs].shape)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_keywords_are_those_that_were_recorded(name: str) -> None:
    config, recorded = built(CONFIGS[name]).vae.config, MAPS[name]["diffusers_config"]
    plain = {key: list(v) if isinstance(v, tuple | list) else v for key, v in config.items()}
    assert {key: plain[key] for key in recorded} == recorded
    assert plain["shift_factor"] is None


def test_the_published_tokenizer_is_as_large_as_its_file() -> None:
    made, checkpoint = built(kl.KL16), kl.CHECKPOINTS["kl16"]
    assert len(made.vae.state_dict()) == 312
    assert sum(p.numel() for p in made.parameters()) == 66_456_019 == checkpoint.parameters
    assert made.factor == 16 and made.channels == 16
    parts = kl.blueprint(checkpoint.config)
    assert parts.schedule == Schedule.scales([1, 2, 4, 8, 16])
    state = kl.table(5).publish(made.vae.state_dict())
    loaded = kl.tokenizer(checkpoint.config, state).tokenizer
    assert loaded is not None and loaded.state_dict().keys() == made.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_same_weights_make_the_same_numbers_in_a_relative(size: tuple[int, int]) -> None:
    state, (encoder, decoder) = published(), relatives()
    made = kl.tokenizer({"vae": VAE}, state).tokenizer
    assert isinstance(made, KL) and not made.training
    assert made.scale.flatten().tolist() == pytest.approx([0.2325] * 4) and not made.shift.any()
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(4))
    grid = (size[0] // 2, size[1] // 2)

    def convolved(x: Tensor, name: str) -> Tensor:
        return torch.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    moments = convolved(encoder(image * 2 - 1), "quant_conv")
    ours = made.compress(image, Schedule.scales([grid]))
    torch.testing.assert_close(ours, moments, rtol=1e-4, atol=1e-4)
    latent = torch.randn(2, 4, *grid)
    pixels = decoder(convolved(latent, "post_quant_conv"))
    torch.testing.assert_close(made.pixels(made.standardised(latent)), pixels, rtol=1e-4, atol=1e-4)
    assert pixels.std() > 0.05 and moments.std() > 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"ch_mult": [1], "enc_attn_resolutions": [16], "dec_attn_resolutions": [16]},
        {"ch_mult": [1, 1, 2], "num_res_blocks": 2, "enc_attn_resolutions": [16, 4]},
        {"ch_mult": [1, 2, 3, 1], "enc_attn_resolutions": [], "dec_attn_resolutions": [2, 16]},
    ],
)
def test_the_table_serves_any_levels_and_any_attention(changes: dict) -> None:
    vae = {**VAE, **changes}
    made, again = built(vae).to_empty(device="cpu"), built(vae)
    tiny.shaken(made, scale=0.1)
    table = kl.table(len(vae["ch_mult"]))
    state = table.publish(made.vae.state_dict())
    for name, half, blocks in (("encoder.down", "enc", 0), ("decoder.up", "dec", 1)):
        levels = [int(math.log2(16 / size)) for size in vae[f"{half}_attn_resolutions"]]
        count = vae["num_res_blocks"] + blocks
        held = {key.rsplit(".", 2)[0] for key in state if ".attn." in key and key.startswith(name)}
        assert held == {f"{name}.{i}.attn.{j}" for i in levels for j in range(count)}
    table.load(again.vae, state, "it")
    ours = made.vae.state_dict()
    assert all(torch.equal(t, ours[key]) for key, t in again.vae.state_dict().items())


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_tokenizer_has_the_halves_that_the_state_has(name: str) -> None:
    parts = kl.tokenizer({"vae": VAE}, half(name))
    assert {key.split(".")[1] for key in parts.tokenizer.state_dict() if "." in key} == {
        key.split(".")[0] for key in half(name)
    }
    rebuilt = recipe.build(parts.tokenizer_spec, "it")
    assert rebuilt.state_dict().keys() == parts.tokenizer.state_dict().keys()


def test_scales_are_those_of_the_configuration_if_it_has_any() -> None:
    assert kl.tokenizer({"vae": VAE}, published()).schedule == Schedule.scales([1, 2, 4, 8])
    given = {"vae": {**VAE, "img": 24}, "scale": [1, 4], "seed": 3}
    assert kl.tokenizer(given, published()).schedule == Schedule.scales([1, 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": [2, 2]}, r"must have ch_mult\[0\] = 1, got 2"),
        ({"colour": 1}, "unknown keys in the configuration of the KL autoencoder: colour"),
        ({"ch": 40}, "KL autoencoder: KL cannot be built of these: .* divisible by num_groups"),
        ({"num_res_blocks": 2}, "not fit its configuration: 52 missing: decoder.up.0.block.2.conv"),
        ({"embed_dim": 5}, r"7 of another shape: .*quant_conv.bias \(8,\) instead of \(10,\)"),
        ({"dec_attn_resolutions": []}, "20 unexpected: decoder.up.1.attn.0.k.bias"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kl.tokenizer({"vae": {**VAE, **changes}}, published())


def test_what_is_missing_is_named() -> None:
    short = {key: value for key, value in VAE.items() if key != "ch"}
    with pytest.raises(UserError, match="missing keys in the configuration of .*: ch$"):
        kl.tokenizer({"vae": short}, published())
    state = published()
    del state["quant_conv.bias"]
    with pytest.raises(UserError, match="1 missing: quant_conv.bias"):
        kl.tokenizer({"vae": VAE}, state)
    with pytest.raises(UserError, match="holds neither an encoder nor a decoder"):
        kl.tokenizer({"vae": VAE}, {"model.x": torch.zeros(1)})
