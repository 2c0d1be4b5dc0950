"""LlamaGen's tokenizer: published names and configurations; its numbers are in the golden tests."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from var.errors import UserError
from var.recipe import build
from var.schedule import Schedule
from var.systems import llamagen_vq
from var.systems.llamagen_vq import CHECKPOINTS
from var.tokenizers.adversarial import PatchDiscriminator
from var.tokenizers.singlescale import VQ

CONFIG = {"ch": 32, "ch_mult": [1, 2, 2], "z_channels": 6, "codebook_size": 20, "image_size": 16}


def vq(config: dict[str, Any] = CONFIG) -> nn.Module:
    spec = llamagen_vq.blueprint(config).tokenizer_spec
    return tiny.shaken(build(spec or {}, "it", device="cpu"), scale=0.1)


def state(config: dict[str, Any] = CONFIG) -> dict[str, Tensor]:
    published = llamagen_vq.table(len(config["ch_mult"])).publish(vq(config).state_dict())
    return {**published, "quantize.codebook_used": torch.zeros(65536)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_published_state_is_loaded_and_published_again_as_it_was() -> None:
    parts = llamagen_vq.tokenizer(CONFIG, state())
    assert isinstance(parts.tokenizer, VQ) and parts.schedule == Schedule.raster(4)
    assert equal(parts.tokenizer.state_dict(), vq().state_dict())
    again = llamagen_vq.table(3).publish(parts.tokenizer.state_dict())
    given = state()
    del given["quantize.codebook_used"]
    assert equal(again, given)


def test_the_published_decoder_counts_from_the_coarsest_resolution() -> None:
    parts, given = llamagen_vq.tokenizer(CONFIG, state()), state()
    decoder = parts.tokenizer.decoder  # type: ignore[union-attr]
    finest = decoder.up[0].block[2].conv1.weight
    assert torch.equal(finest, given["decoder.conv_blocks.2.res.2.conv1.weight"])
    assert finest.shape == (32, 32, 3, 3)
    values = decoder.up[2].attn[1].qkv.weight[128:]
    assert torch.equal(values, given["decoder.conv_blocks.0.attn.1.v.weight"])


def names(levels: int) -> set[str]:
    """Return the published names, but for `.weight` and `.bias`, as section 2 lists them."""

    def residual(prefix: str, shortcut: bool) -> set[str]:
        found = {f"{prefix}.{n}" for n in ("norm1", "conv1", "norm2", "conv2")}
        return found | ({f"{prefix}.nin_shortcut"} if shortcut else set())

    def attention(prefix: str) -> set[str]:
        return {f"{prefix}.{n}" for n in ("norm", "q", "k", "v", "proj_out")}

    found = {"quant_conv", "post_quant_conv", "quantize.embedding"}
    for half in ("encoder", "decoder"):
        found |= {f"{half}.{n}" for n in ("conv_in", "norm_out", "conv_out")}
        found |= residual(f"{half}.mid.0", False) | residual(f"{half}.mid.2", False)
        found |= attention(f"{half}.mid.1")
    for level in range(levels):
        for half, coarsest, extra in (("encoder", levels - 1, 0), ("decoder", 0, 1)):
            at = f"{half}.conv_blocks.{level}"
            for b in range(2 + extra):
                # Multipliers 1, 1, 2, 2, 4: where channels change, the first block has a shortcut.
                changes = {"encoder": {2, 4}, "decoder": {1, 3}}[half]
                found |= residual(f"{at}.res.{b}", b == 0 and level in changes)
                if level == coarsest:
                    found |= attention(f"{at}.attn.{b}")
            if level < levels - 1:
                found.add(f"{at}.{'downsample' if half == 'encoder' else 'upsample'}.conv")
    return found


def test_the_names_of_vq16_are_the_published_ones() -> None:
    spec = llamagen_vq.blueprint(CHECKPOINTS["llamagen-vq16"].config).tokenizer_spec
    ours = build(spec or {}, "it").state_dict()
    published = llamagen_vq.table(5).publish(ours)
    assert {name.rpartition(".")[0] for name in published} == names(5)
    assert published["quantize.embedding.weight"].shape == (16384, 8)
    assert published["quant_conv.weight"].shape == (8, 256, 1, 1)
    assert published["decoder.conv_blocks.0.attn.2.q.weight"].shape == (512, 512, 1, 1)


@pytest.mark.parametrize(
    ("name", "side"), [(name, 32 if "8" in name else 16) for name in CHECKPOINTS]
)
def test_checkpoints_are_of_the_published_size(name: str, side: int) -> None:
    checkpoint = CHECKPOINTS[name]
    parts = llamagen_vq.blueprint(checkpoint.config)
    tokenizer: Any = build(parts.tokenizer_spec or {}, name)
    assert sum(weight.numel() for weight in tokenizer.parameters()) == checkpoint.parameters
    assert parts.schedule == Schedule.raster(side)
    assert side * tokenizer.factor == checkpoint.size


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_tokenizer_has_the_halves_that_the_state_has(half: str) -> None:
    other = {"encoder": ("decoder", "post_quant_conv"), "decoder": ("encoder", "quant_conv")}[half]
    given = {key: tensor for key, tensor in state().items() if not key.startswith(other)}
    tokenizer = llamagen_vq.tokenizer(CONFIG, given).tokenizer
    assert hasattr(tokenizer, half) and not hasattr(tokenizer, other[0])


def test_what_does_not_fit_is_named_as_published() -> None:
    given = state()
    del given["encoder.mid.1.k.bias"]
    given["surplus"] = torch.zeros(1)
    with pytest.raises(
        UserError, match=r"missing: encoder\.mid\.1\.k\.bias; 1 unexpected: surplus"
    ):
        llamagen_vq.tokenizer(CONFIG, given)
    with pytest.raises(UserError, match="neither an encoder nor a decoder"):
        llamagen_vq.tokenizer(CONFIG, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "unknown keys in the configuration of VQModel: depth"),
        ({"image_size": 18}, "image_size=18 does not come out even"),
        ({"decoder_ch_mult": [1, 2]}, r"different shapes, \(1, 2\) and \(1, 2, 2\)"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        llamagen_vq.blueprint(CONFIG | changes)


def test_both_halves_may_be_given_the_same_shape() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "ch_mult"}
    both = {"encoder_ch_mult": [1, 2, 2], "decoder_ch_mult": (1, 2, 2)}
    ours, theirs = (llamagen_vq.blueprint(each) for each in (config | both, CONFIG))
    assert [*(ours.tokenizer_spec or {})["multipliers"]] == CONFIG["ch_mult"]
    assert ours.schedule == theirs.schedule


def test_the_discriminator_is_loaded_and_one_of_other_norms_refused() -> None:
    config = {"input_nc": 3, "ndf": 8, "n_layers": 2, "use_actnorm": False}
    made = PatchDiscriminator(width=8, layers=2)
    given = {f"main.{name}": tensor for name, tensor in made.state_dict().items()}
    found = llamagen_vq.discriminator(config, given).model
    assert equal(found.state_dict(), made.state_dict())  # type: ignore[union-attr]
    with pytest.raises(UserError, match="use_actnorm"):
        llamagen_vq.discriminator(config | {"use_actnorm": True}, given)


def test_a_block_that_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match="unknown block mlp; there are: resnet, attn, down, up"):
        llamagen_vq.block({"block": "mlp", "in_channels": 32, "out_channels": 32}, {})
