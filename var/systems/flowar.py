"""FlowAR as published: next-scale prediction on KL-16 latents with a flow head (arXiv 2412.15205).

How the numbers of the original map to our pieces:

- its latents, scaled by 0.2325, are the last scale of `tokenizer.encode`, and `canvas.latent` of a
  full canvas; `canvas.read(schedule[1:])` is the input of `z_proj`.
- conditioning vectors z are the model's features; intermediate ones leave the modules that
  `flowar_keys` names.
- the velocity of the head is `net(x, net.clock(t), net.meet(z, span))` with `net = model.head.net`,
  the time of each group in t (R, G).
- its loss is the mean of `model.head.loss`; errors per scale are means over a scale's positions,
  divided by `len(span) / span.sizes[-1]`.
- its `cfg` and `guidance` are `Sampling(guidance=(1, cfg), interval=guidance, solver="published",
  steps=num_steps)`. A `cfg` below 1 means no guidance there: (1, 1) here.
- of recorded noise, whose second half is for rows that do not count, the first half is drawn.
- the null class is label -1; images are in [0, 1] here and in [-1, 1] there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from var import recipe
from var.errors import UserError
from var.heads.flow_net import CrossBlock, FlowNet, SpatialBlock
from var.models.foreign import KeyTable
from var.schedule import Schedule
from var.systems import flowar_keys, kl
from var.systems.base import Checkpoint, Config, Parts, Spec, State, renamed, split

_MODEL_NAMES = {
    "vae_embed_dim": "channels",
    "scale": "ladder",
    "encoder_embed_dim": "width",
    "encoder_depth": "encoder_depth",
    "decoder_depth": "decoder_depth",
    "encoder_num_heads": "heads",
    "decoder_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "diffloss_d": "head_depth",
    "diffloss_w": "head_width",
    "cross": "cross",
    "proj_dropout": "drop",
    "attn_dropout": "attention_drop",
}
_MODEL_DEFAULTS = {
    "vae_embed_dim": 16,
    "scale": (1, 2, 4, 8, 16),
    "mlp_ratio": 4.0,
    "diffloss_d": 3,
    "diffloss_w": 1024,
    "proj_dropout": 0.1,
    "attn_dropout": 0.1,
}
# Dropping labels is the training loop's business; the table always holds 1000 classes, whatever
# `class_num` says; the rest has no effect.
_MODEL_IGNORED = (
    "img_size", "vae_stride", "patch_size", "buffer_size", "label_drop_prob", "class_num",
    "decoder_embed_dim", "norm_layer", "grad_checkpointing", "use_checkpoint", "qk_norm",
)  # fmt: skip
_CLASSES = 1000

_HEAD_NAMES = {
    "in_channels": "channels",
    "z_channels": "source",
    "model_channels": "width",
    "num_res_blocks": "depth",
    "cross": "cross",
}
_BLOCK_NAMES = {"dim": "width", "num_heads": "heads", "semantic_dim": "source"}
_BLOCKS = {"Block_v1": SpatialBlock, "Block_v2": CrossBlock}


def build(config: Config, state: State) -> Parts:
    """Return the parts that a published state holds.

    Args:
        config: `model` (constructor keywords of FlowAR), `head` (of its flow network), `vae` (of
            the KL autoencoder), `cls` and `block` (a single block of the network), or `model` and
            `vae`. Of `runs`, recorded with one model, the first counts. What else a recording says
            is of no interest here.
        state: published keys to tensors. With model and autoencoder in it they are prefixed
            `model/` and `vae/`. A state without the head's tensors gives a model without a head.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    if "runs" in config:
        config = next(iter(config["runs"].values()))
    if {"model", "vae"} <= config.keys():
        return _both(config, state)
    for name, part in (("model", _model), ("head", _head), ("block", _block), ("vae", _vae)):
        if name in config:
            return part(config, state)
    raise UserError(f"expected model, head, block, vae or runs; got {', '.join(config)}")


def blueprint(config: Config) -> Parts:
    """Return how the parts of a released checkpoint are built, without the parts themselves.

    Args:
        config: as for `build`, of the autoencoder or of both.
    """
    tokenizer = kl.blueprint(config)
    if "model" not in config:
        return tokenizer
    spec = _model_spec(config["model"])
    return Parts(
        model_spec=spec,
        tokenizer_spec=tokenizer.tokenizer_spec,
        schedule=Schedule.scales(spec["ladder"]),
    )


def _both(config: Config, state: State) -> Parts:
    states = split(state, ("model", "vae"))
    model, tokenizer = _model(config, states["model"]), _vae(config, states["vae"])
    assert model.model_spec is not None and tokenizer.tokenizer_spec is not None
    ours, theirs = (
        model.model_spec["channels"], tokenizer.tokenizer_spec["vae"]["latent_channels"]
    )  # fmt: skip
    if ours != theirs:
        raise UserError(f"the model is for {ours} latent channels, the autoencoder has {theirs}")
    return replace(model, tokenizer=tokenizer.tokenizer, tokenizer_spec=tokenizer.tokenizer_spec)


def _vae(config: Config, state: State) -> Parts:
    return kl.tokenizer(config, state)


def _model(config: Config, state: State) -> Parts:
    spec = _model_spec(config["model"])
    model = recipe.build(spec, "FlowAR")
    if not any(key.startswith("flownet.") for key in state):
        model.head = nn.Identity()
    flowar_keys.MODEL.load(model, state, "the state of FlowAR")
    return Parts(model=model, model_spec=spec, schedule=Schedule.scales(spec["ladder"]))


def _model_spec(config: Config) -> Spec:
    defaults = {**_MODEL_DEFAULTS, "cross": False}
    values = renamed(config, _MODEL_NAMES, "FlowAR", defaults=defaults, ignored=_MODEL_IGNORED)
    _only(config, "decoder_embed_dim", values["width"])
    _only(config, "buffer_size", 0)
    _only(config, "patch_size", 1)
    return {"_target_": "var.models.flowar.FlowAR", "classes": _CLASSES, **values}


def _only(config: Config, name: str, value: int) -> None:
    if config.get(name, value) != value:
        raise UserError(f"FlowAR with {name}={config[name]} cannot be run: it must be {value}")


def _head(config: Config, state: State) -> Parts:
    # As many channels come out as go in.
    names = renamed(config["head"], _HEAD_NAMES, "the flow head", ignored=("out_channels",))
    return _loaded(lambda: FlowNet(**names), flowar_keys.HEAD, state, "the flow head")


def _block(config: Config, state: State) -> Parts:
    kind = _BLOCKS.get(config.get("cls", ""))
    if kind is None:
        raise UserError(f"unknown cls {config.get('cls')}; there are: {', '.join(_BLOCKS)}")
    block = {"semantic_dim": 0, **config["block"]}
    names = renamed(block, _BLOCK_NAMES, config["cls"])
    return _loaded(lambda: kind(**names), flowar_keys.BLOCK, state, config["cls"])


def _loaded(make: Callable[[], nn.Module], table: KeyTable, state: State, what: str) -> Parts:
    with torch.device("meta"):
        module = make()
    table.load(module, state, f"the state of {what}")
    return Parts(model=module)


_KL16 = kl.CHECKPOINTS["kl16"]


def _checkpoint(
    name: str, parameters: int, guidance: float, interval: float, steps: int, **sizes: Any
) -> Checkpoint:
    width, heads, depth = sizes["width"], sizes["heads"], sizes["depth"]
    model = {
        "encoder_embed_dim": width,
        "encoder_depth": depth,
        "encoder_num_heads": heads,
        "decoder_embed_dim": width,
        "decoder_depth": depth,
        "decoder_num_heads": heads,
        "diffloss_d": sizes["head_depth"],
        "diffloss_w": sizes["head_width"],
        "cross": sizes["cross"],
    }
    return Checkpoint(
        system="flowar",
        repository="OliverRen/FlowAR",
        files={"model": f"FlowAR-{name}.pth", "vae": _KL16.files[""]},
        repositories={"vae": _KL16.repository},
        config={"vae": kl.KL16, "model": model},
        parameters=parameters,
        size=256,
        sampling={
            "guidance": (1.0, guidance),
            "interval": interval,
            "steps": steps,
            "solver": "published",
        },
    )


_WIDE = {"cross": True, "head_depth": 12}

CHECKPOINTS = {
    "flowar-s": _checkpoint(
        "S", 171_718_072, 4.3, 0.9, 25,
        width=768, heads=12, depth=6, cross=False, head_depth=2, head_width=1024,
    ),
    "flowar-l": _checkpoint(
        "L", 586_862_912, 2.4, 0.9, 25, width=1024, heads=16, depth=8, head_width=1024, **_WIDE
    ),
    "flowar-h": _checkpoint(
        "H", 1_913_316_880, 2.4, 0.7, 50, width=1536, heads=16, depth=15, head_width=1536, **_WIDE
    ),
    **kl.CHECKPOINTS,
}  # fmt: skip
