"""LlamaGen's tokenizer as published: a single-scale VQ-VAE of directions (arXiv 2406.06525).

How the numbers of the original map to our pieces:

- its encoder is `tokenizer.encoder` of an image in [-1, 1], the latent before quantisation
  `tokenizer.features(image)`, its ids, row-major, `tokenizer.compress(image, schedule)`.
- the quantised latent, with the arithmetic of the straight-through estimator, is that of
  `tokenizer.quantizer(latent, schedule)`; what ids stand for is `canvas.latent`, without it.
- its `decode_code` is `tokenizer.pixels(canvas.latent)`.
- its losses are those of `tokenizer.quantizer.losses`, of both objectives those of
  `var.tokenizers.losses` and its neighbours.
- the record of codes in use is dropped: it is no part of the function.
- images are in [0, 1] here and in [-1, 1] there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from var import recipe
from var.errors import UserError
from var.models.foreign import Key, KeyTable, inside
from var.schedule import Schedule
from var.systems.base import Checkpoint, Config, Parts, Spec, State, renamed
from var.tokenizers.adversarial import PatchDiscriminator
from var.tokenizers.autoencoder import Downsample, ResBlock, SpatialAttention, Upsample

_QUANTIZER_NAMES = {
    "n_e": "vocabulary",
    "e_dim": "channels",
    "beta": "commitment",
    "entropy_loss_ratio": "entropy",
    "l2_norm": "unit",
}
_TOKENIZER_NAMES = {
    "codebook_size": "vocabulary",
    "codebook_embed_dim": "channels",
    "commit_loss_beta": "commitment",
    "entropy_loss_ratio": "entropy",
    "codebook_l2_norm": "unit",
    "z_channels": "inner",
    "ch": "width",
    "ch_mult": "multipliers",
    "num_res_blocks": "blocks",
    "dropout_p": "dropout",
}
_DEFAULTS = {
    "codebook_size": 16384,
    "codebook_embed_dim": 8,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "codebook_l2_norm": True,
    "z_channels": 256,
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "dropout_p": 0.0,
}
# Counting the codes in use is the training loop's business; `image_size` sets the schedule.
_IGNORED = ("codebook_show_usage", "show_usage", "image_size")
_SIZE = 256

_GROUPS = 32
_BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet": lambda a, b: ResBlock(a, b, dropout=0.0, groups=_GROUPS),
    "attn": lambda a, b: SpatialAttention(a, groups=_GROUPS),
    "down": lambda a, b: Downsample(a),
    "up": lambda a, b: Upsample(a),
}

_ATTENTION = (
    Key(("q.{rest}", "k.{rest}", "v.{rest}"), "qkv.{rest}"),
    Key("norm.{rest}", "norm.{rest}"),
    Key("proj_out.{rest}", "proj_out.{rest}"),
)
_LEVEL = (
    Key("res.{b}.{rest}", "block.{b}.{rest}"),
    *inside("attn.{b}", "attn.{b}", _ATTENTION),
    Key("downsample.{rest}", "downsample.{rest}"),
    Key("upsample.{rest}", "upsample.{rest}"),
)
_ENDS = (
    Key("conv_in.{rest}", "conv_in.{rest}"),
    Key("mid.0.{rest}", "mid.block_1.{rest}"),
    *inside("mid.1", "mid.attn_1", _ATTENTION),
    Key("mid.2.{rest}", "mid.block_2.{rest}"),
    Key("norm_out.{rest}", "norm_out.{rest}"),
    Key("conv_out.{rest}", "conv_out.{rest}"),
)
_QUANTIZER = (Key("embedding.weight", "codebook.weight"),)

QUANTIZER = KeyTable(keys=_QUANTIZER, derived=("codebook_used",))
BLOCK = KeyTable(keys=(*_ATTENTION, Key("{rest}", "{rest}")))
DISCRIMINATOR = KeyTable(keys=(Key("main.{i}.{rest}", "{i}.{rest}"),))


def table(levels: int) -> KeyTable:
    """Return the table of the whole tokenizer.

    Args:
        levels: number of resolutions. The published decoder counts them in the order of use,
            ours begins with the finest, which it reaches last.
    """
    ups = (
        inside(f"decoder.conv_blocks.{levels - 1 - i}", f"decoder.up.{i}", _LEVEL)
        for i in range(levels)
    )
    return KeyTable(
        keys=(
            *inside("encoder.conv_blocks.{l}", "encoder.down.{l}", _LEVEL),
            *inside("encoder", "encoder", _ENDS),
            *(key for up in ups for key in up),
            *inside("decoder", "decoder", _ENDS),
            *inside("quantize", "quantizer", _QUANTIZER),
            Key("quant_conv.{rest}", "quant_conv.{rest}"),
            Key("post_quant_conv.{rest}", "post_quant_conv.{rest}"),
        ),
        derived=("quantize.codebook_used",),
    )


def tokenizer(config: Config, state: State) -> Parts:
    """Return the tokenizer whose weights, all or those of one half, a published state holds.

    Args:
        config: constructor keywords of the original's VQModel; those left out are as in VQ-16.
            `image_size` sets the schedule; without it that of 256 pixels.
        state: published keys to tensors.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    parts = blueprint(config)
    spec: Spec = dict(parts.tokenizer_spec or {})
    for half in ("encoder", "decoder"):
        spec[half] = any(key.startswith(f"{half}.") for key in state)
    if not (spec["encoder"] or spec["decoder"]):
        raise UserError("the state of VQModel holds neither an encoder nor a decoder")
    made = recipe.build(spec, "VQModel")
    table(len(spec["multipliers"])).load(made, state, "the state of VQModel")
    return Parts(tokenizer=made, tokenizer_spec=spec, schedule=parts.schedule)


def blueprint(config: Config) -> Parts:
    """Return how the tokenizer is built, and its schedule, without the tokenizer itself.

    Args:
        config: as for `tokenizer`.

    Raises:
        UserError: a keyword is unknown, or encoder and decoder differ in shape.
    """
    config = _one_shape(config)
    values = renamed(config, _TOKENIZER_NAMES, "VQModel", defaults=_DEFAULTS, ignored=_IGNORED)
    side, rest = divmod(config.get("image_size", _SIZE), 2 ** (len(values["multipliers"]) - 1))
    if rest or not side:
        raise UserError(
            f"VQModel halves images {len(values['multipliers']) - 1} times: image_size="
            f"{config.get('image_size', _SIZE)} does not come out even"
        )
    spec = {"_target_": "var.tokenizers.singlescale.VQ", **values}
    return Parts(tokenizer_spec=spec, schedule=Schedule.raster(side))


def _one_shape(config: Config) -> Config:
    """Return a configuration with `ch_mult` in place of one for each half."""
    rest = dict(config)
    named = [rest.pop(key) for key in ("encoder_ch_mult", "decoder_ch_mult") if key in rest]
    shapes = {tuple(each) for each in [*named, *([rest["ch_mult"]] if "ch_mult" in rest else [])]}
    if len(shapes) > 1:
        raise UserError(
            f"VQModel with halves of different shapes, {' and '.join(map(str, sorted(shapes)))}, "
            "cannot be run: encoder_ch_mult and decoder_ch_mult must be equal"
        )
    return {**rest, **({"ch_mult": shapes.pop()} if shapes else {})}


def quantizer(config: Config, state: State) -> Parts:
    """Return the quantizer alone, for recordings.

    Args:
        config: constructor keywords of the original's VectorQuantizer.
        state: published keys to tensors.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    what = "VectorQuantizer"
    values = renamed(config, _QUANTIZER_NAMES, what, ignored=_IGNORED)
    spec = {"_target_": "var.tokenizers.quantizer.Quantizer", **values}
    made = recipe.build(spec, what)
    QUANTIZER.load(made, state, f"the state of {what}")
    return Parts(tokenizer=made, tokenizer_spec=spec)


def block(config: Config, state: State) -> Parts:
    """Return a single block of the auto-encoder as `model`, for recordings.

    Args:
        config: `block`, which begins with resnet, attn, down or up; `in_channels`, `out_channels`.
        state: published keys to tensors.

    Raises:
        UserError: no such block; configuration and state do not fit, names the keys.
    """
    kind = config["block"].partition("_")[0]
    if kind not in _BLOCKS:
        raise UserError(f"unknown block {config['block']}; there are: {', '.join(_BLOCKS)}")
    made = _BLOCKS[kind](config["in_channels"], config["out_channels"])
    BLOCK.load(made, state, f"the state of the block {config['block']}")
    return Parts(model=made)


def discriminator(config: Config, state: State) -> Parts:
    """Return the PatchGAN that judges reconstructions as `model`.

    Args:
        config: its constructor keywords, `input_nc`, `ndf` and `n_layers`.
        state: published keys to tensors.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    if config.get("use_actnorm"):
        raise UserError("a discriminator with use_actnorm=true cannot be run: it must be false")
    names = {"input_nc": "inputs", "ndf": "width", "n_layers": "layers"}
    defaults = {"input_nc": 3, "ndf": 64, "n_layers": 3}
    values: dict[str, Any] = renamed(
        config, names, "the discriminator", defaults=defaults, ignored=("use_actnorm",)
    )
    with torch.device("meta"):
        made = PatchDiscriminator(**values, norm="batch")
    DISCRIMINATOR.load(made, state, "the state of the discriminator")
    return Parts(model=made)


VQ16 = {"ch_mult": (1, 1, 2, 2, 4), "image_size": _SIZE}
VQ8 = {"ch_mult": (1, 2, 2, 4), "image_size": _SIZE}


def _checkpoint(repository: str, file: str, config: Config, parameters: int) -> Checkpoint:
    return Checkpoint(
        system="llamagen",
        repository=repository,
        files={"": file},
        # Named, as the dispatcher goes by this keyword.
        config={"codebook_size": _DEFAULTS["codebook_size"], **config},
        parameters=parameters,
        size=_SIZE,
    )


_CLASSES, _TEXT = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i"

CHECKPOINTS = {
    "llamagen-vq16": _checkpoint(_CLASSES, "vq_ds16_c2i.pt", VQ16, 71_883_403),
    "llamagen-vq8": _checkpoint(_CLASSES, "vq_ds8_c2i.pt", VQ8, 70_109_835),
    "llamagen-vq16-t2i": _checkpoint(_TEXT, "vq_ds16_t2i.pt", VQ16, 71_883_403),
}
