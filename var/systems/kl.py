"""KL autoencoders of the latent-diffusion family as published, MAR's KL-16 above all (FlowAR, 9).

FlowAR, MAR and others make their latents. Ours is diffusers' `AutoencoderKL`, which computes the
same under other names. How the numbers of the original map to our pieces:

- the moments are `tokenizer.compress(image)`; mean and deviation are those of `Posterior.of(them)`,
  and the latents that models see, 0.2325 times a sample, the last scale of `tokenizer.tokens`.
- decoding a latent that models see is `tokenizer.decode` of a canvas with that last scale.
- images are in [0, 1] here and in [-1, 1] there.
"""

from __future__ import annotations

from typing import Any

from var.diffusers_vae import filled, octaves
from var.errors import UserError
from var.models.foreign import Key, KeyTable, inside
from var.schedule import Schedule
from var.systems.base import Checkpoint, Config, Parts, Spec, State, renamed

# Where it is published there is no name for it: FlowAR and MAR multiply latents by it.
_SCALING = 0.2325

_NAMES = {
    "ch": "width",
    "ch_mult": "multipliers",
    "num_res_blocks": "blocks",
    "resolution": "size",
    "embed_dim": "channels",
    "enc_attn_resolutions": "encoder_attention",
    "dec_attn_resolutions": "decoder_attention",
}
_DEFAULTS = {"enc_attn_resolutions": (), "dec_attn_resolutions": ()}
_IGNORED = ("img",)  # the side of the recorded images

KL16 = {
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "resolution": 256,
    "embed_dim": 16,
    "enc_attn_resolutions": (16,),
    "dec_attn_resolutions": (),
}

_RESIDUAL = (
    Key("nin_shortcut.{rest}", "conv_shortcut.{rest}"),
    Key("{rest}", "{rest}"),
)
_ATTENTION = (
    Key("norm.{rest}", "group_norm.{rest}"),
    Key("q.weight", "to_q.weight", "o i 1 1 -> o i"),
    Key("k.weight", "to_k.weight", "o i 1 1 -> o i"),
    Key("v.weight", "to_v.weight", "o i 1 1 -> o i"),
    Key("proj_out.weight", "to_out.0.weight", "o i 1 1 -> o i"),
    Key("q.bias", "to_q.bias"),
    Key("k.bias", "to_k.bias"),
    Key("v.bias", "to_v.bias"),
    Key("proj_out.bias", "to_out.0.bias"),
)


_LEVEL = (
    *inside("block.{j}", "resnets.{j}", _RESIDUAL),
    *inside("attn.{j}", "attentions.{j}", _ATTENTION),
    Key("downsample.{rest}", "downsamplers.0.{rest}"),
    Key("upsample.{rest}", "upsamplers.0.{rest}"),
)
_ENDS = (
    Key("conv_in.{rest}", "conv_in.{rest}"),
    Key("norm_out.{rest}", "conv_norm_out.{rest}"),
    Key("conv_out.{rest}", "conv_out.{rest}"),
    *inside("mid.block_1", "mid_block.resnets.0", _RESIDUAL),
    *inside("mid.attn_1", "mid_block.attentions.0", _ATTENTION),
    *inside("mid.block_2", "mid_block.resnets.1", _RESIDUAL),
)


def table(levels: int) -> KeyTable:
    """Return the table from the published names to those of `AutoencoderKL`.

    Args:
        levels: number of resolutions. The published decoder counts them from the finest, which it
            reaches last, diffusers in the order of use.
    """
    ups = (
        inside(f"decoder.up.{i}", f"decoder.up_blocks.{levels - 1 - i}", _LEVEL)
        for i in range(levels)
    )
    return KeyTable(
        keys=(
            *inside("encoder", "encoder", _ENDS),
            *inside("encoder.down.{i}", "encoder.down_blocks.{i}", _LEVEL),
            Key("quant_conv.{rest}", "quant_conv.{rest}"),
            Key("post_quant_conv.{rest}", "post_quant_conv.{rest}"),
            *inside("decoder", "decoder", _ENDS),
            *(key for up in ups for key in up),
        )
    )


def tokenizer(config: Config, state: State) -> Parts:
    """Return the tokenizer whose weights, all or those of one half, a published state holds.

    Args:
        config: `vae`, arguments of the original's encoder and decoder, and `scale`, the sides of
            the scales; without these they double. Other entries are not looked at.
        state: published keys to tensors.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    parts, vae = blueprint(config), config["vae"]
    assert parts.tokenizer_spec is not None
    halves = {
        half: any(key.startswith(f"{half}.") for key in state) for half in ("encoder", "decoder")
    }
    if not any(halves.values()):
        raise UserError("the state of the KL autoencoder holds neither an encoder nor a decoder")
    whole = parts.tokenizer_spec | halves
    made = filled(
        whole,
        table(len(vae["ch_mult"])),
        state,
        "the state of the KL autoencoder",
        where="the configuration of the KL autoencoder",
    )
    return Parts(tokenizer=made, tokenizer_spec=whole, schedule=parts.schedule)


def blueprint(config: Config) -> Parts:
    """Return how the tokenizer is built, and its scales, without the tokenizer itself.

    Args:
        config: as for `tokenizer`.

    Raises:
        UserError: diffusers cannot build what the configuration describes.
    """
    spec = _spec(config["vae"])
    schedule = Schedule.scales(config["scale"]) if "scale" in config else octaves(spec["vae"])
    return Parts(tokenizer_spec=spec, schedule=schedule)


def _spec(config: Config) -> Spec:
    what = "the KL autoencoder"
    values: dict[str, Any] = renamed(config, _NAMES, what, defaults=_DEFAULTS, ignored=_IGNORED)
    multipliers, size = values["multipliers"], values["size"]
    if multipliers[0] != 1:
        raise UserError(
            f"diffusers' AutoencoderKL begins as wide as its first level: {what} must have "
            f"ch_mult[0] = 1, got {multipliers[0]}"
        )
    # Attention belongs to nominal resolutions, whatever the size of the images.
    sides = [size / 2**i for i in range(len(multipliers))]
    down = ["Attn" * (side in values["encoder_attention"]) for side in sides]
    up = ["Attn" * (side in values["decoder_attention"]) for side in reversed(sides)]
    vae = {
        "block_out_channels": [values["width"] * factor for factor in multipliers],
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in down],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in up],
        "layers_per_block": values["blocks"],
        "latent_channels": values["channels"],
        "norm_num_groups": 32,
        "sample_size": size,
        "scaling_factor": _SCALING,
    }
    return {"_target_": "var.tokenizers.continuous.KL", "vae": vae}


CHECKPOINTS = {
    "kl16": Checkpoint(
        system="flowar",
        repository="jadechoghari/mar",
        files={"": ("kl16.ckpt", "kl16.safetensors")},
        config={"vae": KL16},
        parameters=66_456_019,
        size=256,
    ),
}
