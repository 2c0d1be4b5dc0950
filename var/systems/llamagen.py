"""LlamaGen as published: next-token prediction on VQ codes in raster order (arXiv 2406.06525).

How the numbers of the original map to our pieces:

- row T - 1 + i of its sequence, which predicts token i, is feature i of our model, which reads
  tokens from the canvas, shifted by one; its logits are `model.head(h, span, guide)`. Rows of a
  text before the last one predict nothing: `Block.through` computes what they are good for.
- the last token is read by nobody here. A model on a raster of one more row, of the same weights
  and angles, reads it.
- queries are scaled already, keys and queries of a text are zero and not computed at all.
- texts come to lie right, padded with zeros, by `Condition.of_text`; its `left_mask` is `valid`.
- the null class and the null text are label -1; dropping labels is `Condition.dropped`.
- the published scale s is `Sampling(guidance=(s, s))`, `cfg_interval` c is `guided_groups=c + 2`,
  no `top_p` is 1 there and 0 here; 0 there keeps one code, as a tiny `top_p` does here.
- images are in [0, 1] here and in [-1, 1] there.

The tokenizer: see `var.systems.llamagen_vq`.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

from var import recipe
from var.errors import UserError
from var.models.raster import gated_width
from var.schedule import Schedule
from var.systems import llamagen_keys, llamagen_vq
from var.systems.base import Checkpoint, Config, Parts, Spec, State, renamed, split

_NAMES = {
    "dim": "width",
    "n_layer": "depth",
    "n_head": "heads",
    "n_kv_head": "kv_heads",
    "vocab_size": "vocabulary",
    "block_size": "grid",
    "norm_eps": "norm_eps",
    "rope_base": "base",
    "token_dropout_p": "token_drop",
    "resid_dropout_p": "drop",
    "attn_dropout_p": "attention_drop",
    "drop_path_rate": "drop_path",
}
_DEFAULTS = {
    "n_kv_head": None,
    "vocab_size": 16384,
    "block_size": 256,
    "norm_eps": 1e-5,
    "rope_base": 10000.0,
    "token_dropout_p": 0.1,
    "resid_dropout_p": 0.1,
    "attn_dropout_p": 0.0,
    "drop_path_rate": 0.0,
}
# Looked at below. Weights are drawn by the model, caches are as long as they must be.
_OTHERS = {
    "model_type", "num_classes", "class_dropout_prob", "cls_token_num", "caption_dim",
    "multiple_of", "ffn_dim_multiplier", "ffn_dropout_p",
    "initializer_range", "max_batch_size", "max_seq_len",
}  # fmt: skip
_TEXT_LENGTH = 120

_PARTS = {
    "codebook_size": llamagen_vq.tokenizer,
    "n_e": llamagen_vq.quantizer,
    "block": llamagen_vq.block,
    "input_nc": llamagen_vq.discriminator,
}


def build(config: Config, state: State) -> Parts:
    """Return the parts that a published state holds.

    Args:
        config: constructor keywords of the transformer, as they are or below `model`; of VQModel
            (told by `codebook_size`), of its quantizer (`n_e`), of one of its blocks (`block`) or
            of its discriminator (`input_nc`); or `{"model": ..., "vq": ...}` for the whole system.
        state: published keys to tensors. With both parts in it they are prefixed `model/` and
            `vq/`.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    if {"model", "vq"} <= config.keys():
        return _both(config, state)
    if "model" in config or "dim" in config:
        return _model(config.get("model", config), state)
    for key, part in _PARTS.items():
        if key in config:
            return part(config, state)
    raise UserError(f"expected model, dim or {', '.join(_PARTS)}; got {', '.join(config)}")


def blueprint(config: Config) -> Parts:
    """Return how the parts of a released checkpoint are built, without the parts themselves.

    Args:
        config: as for `build`, of the tokenizer or of the whole system.
    """
    tokenizer = llamagen_vq.blueprint(config.get("vq", config))
    if "model" not in config:
        return tokenizer
    spec = _spec(config["model"])
    return Parts(
        model_spec=spec,
        tokenizer_spec=tokenizer.tokenizer_spec,
        schedule=Schedule.raster(spec["grid"]),
    )


def _both(config: Config, state: State) -> Parts:
    states = split(state, ("model", "vq"))
    model = _model(config["model"], states["model"])
    vq = llamagen_vq.tokenizer(config["vq"], states["vq"])
    assert model.model_spec is not None and vq.tokenizer_spec is not None
    ours, theirs = model.model_spec["vocabulary"], vq.tokenizer_spec["vocabulary"]
    if ours != theirs:
        raise UserError(f"the model is for {ours} codes, the tokenizer has {theirs}")
    return replace(model, tokenizer=vq.tokenizer, tokenizer_spec=vq.tokenizer_spec)


def _model(config: Config, state: State) -> Parts:
    spec = _spec(config)
    model, null = recipe.build(spec, "LlamaGen"), llamagen_keys.NULL_TEXT
    if null in state:  # of the full length, whatever that of texts
        state = {**state, null: state[null][: spec.get("text_length")]}
    llamagen_keys.MODEL.load(model, state, "the state of LlamaGen")
    return Parts(model=model, model_spec=spec, schedule=Schedule.raster(spec["grid"]))


def _spec(config: Config) -> Spec:
    values: Spec = renamed(config, _NAMES, "LlamaGen", defaults=_DEFAULTS, ignored=_OTHERS)
    after = config.get("ffn_dropout_p", 0.1)
    if after != values["drop"]:
        raise UserError(
            f"LlamaGen with resid_dropout_p={values['drop']} and ffn_dropout_p={after} cannot be "
            "run: they must be equal"
        )
    side = isqrt(values["grid"])
    if not side or side * side != values["grid"]:
        raise UserError(
            f"LlamaGen with block_size={values['grid']} cannot be run: it must be a square"
        )
    hidden = gated_width(
        values["width"], config.get("multiple_of", 256), config.get("ffn_dim_multiplier")
    )
    shape = {"grid": side, "hidden": hidden, **_source(config)}
    return {"_target_": "var.models.raster.Raster", **values, **shape}


def _source(config: Config) -> Spec:
    """Return what tells the model of its condition."""
    kind = config.get("model_type", "c2i")
    if kind == "t2i":
        length = config.get("cls_token_num", _TEXT_LENGTH)
        return {"text": config.get("caption_dim", 2048), "text_length": length}
    if kind != "c2i":
        raise UserError(f"unknown model_type {kind}; there are: c2i, t2i")
    if config.get("cls_token_num", 1) != 1:
        raise UserError(
            f"LlamaGen of classes with cls_token_num={config['cls_token_num']} cannot be run: "
            "it must be 1"
        )
    null = config.get("class_dropout_prob", 0.1) > 0
    return {"classes": config.get("num_classes", 1000), "null_class": null}


_VQ = llamagen_vq.CHECKPOINTS


def _checkpoint(
    file: str, shape: tuple[int, int, int], size: int, parameters: int, **sampling: Any
) -> Checkpoint:
    text = file.startswith("t2i")
    tokenizer = _VQ["llamagen-vq16-t2i" if text else "llamagen-vq16"]
    depth, heads, width = shape
    model = {
        "model_type": "t2i" if text else "c2i",
        "n_layer": depth,
        "n_head": heads,
        "dim": width,
        "block_size": (size // 16) ** 2,
    }
    return Checkpoint(
        system="llamagen",
        repository=tokenizer.repository,
        files={"model": file, "vq": tokenizer.files[""]},
        config={"vq": {**tokenizer.config, "image_size": size}, "model": model},
        parameters=parameters,
        size=size,
        sampling=sampling,
    )


_B, _L, _XL = (12, 12, 768), (24, 16, 1024), (36, 20, 1280)
_XXL, _3B = (48, 24, 1536), (24, 32, 3200)
_OF_TEXT = {"guidance": (7.5, 7.5), "top_k": 1000}

CHECKPOINTS = {
    "llamagen-b": _checkpoint("c2i_B_256.pt", _B, 256, 110_888_448, guidance=(2.0, 2.0)),
    "llamagen-b-384": _checkpoint("c2i_B_384.pt", _B, 384, 110_888_448, guidance=(2.0, 2.0)),
    "llamagen-l": _checkpoint("c2i_L_256.pt", _L, 256, 342_910_976, guidance=(2.0, 2.0)),
    "llamagen-l-384": _checkpoint("c2i_L_384.pt", _L, 384, 342_910_976, guidance=(2.0, 2.0)),
    "llamagen-xl": _checkpoint("c2i_XL_384.pt", _XL, 384, 774_699_520, guidance=(1.75, 1.75)),
    "llamagen-xxl": _checkpoint("c2i_XXL_384.pt", _XXL, 384, 1_410_972_672, guidance=(1.75, 1.75)),
    "llamagen-3b": _checkpoint("c2i_3B_384.pt", _3B, 384, 3_096_659_200, guidance=(1.65, 1.65)),
    "llamagen-t2i-256": _checkpoint("t2i_XL_stage1_256.pt", _XL, 256, 777_678_080, **_OF_TEXT),
    "llamagen-t2i-512": _checkpoint("t2i_XL_stage2_512.pt", _XL, 512, 777_678_080, **_OF_TEXT),
    **_VQ,
}
