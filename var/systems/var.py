"""VAR as published: next-scale prediction with a multi-scale VQ-VAE (arXiv 2404.02905).

How the numbers of the original map to our pieces:

- `f_hat` after scale k is `latent` of the canvas yielded after turn k; the input of scale k + 1 is
  `canvas.read(schedule[k + 1 : k + 2])`, and teacher forcing reads a fully written canvas.
- the published `cfg` is `Sampling(guidance=cfg)`; guided logits are `model.head(h, span, guide)`,
  those of the two halves take `Guide(scale=1, rows=1)`; greedy is sampling without streams.
- the null class is label -1; dropping labels is `Condition.dropped`.
- images are in [0, 1] here and in [-1, 1] there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from var import recipe
from var.errors import UserError
from var.schedule import Schedule
from var.systems import var_keys
from var.systems.base import Checkpoint, Config, Ladder, Parts, Spec, State, renamed, split

_MODEL_NAMES = {
    "depth": "depth",
    "embed_dim": "width",
    "num_heads": "heads",
    "vocab_size": "vocabulary",
    "Cvae": "channels",
    "num_classes": "classes",
    "patch_nums": "ladder",
    "mlp_ratio": "mlp_ratio",
    "norm_eps": "norm_eps",
    "shared_aln": "shared_adaln",
    "attn_l2_norm": "l2_norm",
    "drop_rate": "drop",
    "attn_drop_rate": "attention_drop",
    "drop_path_rate": "drop_path",
}
_MODEL_DEFAULTS = {
    "mlp_ratio": 4.0,
    "norm_eps": 1e-6,
    "shared_aln": False,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
}
# Dropping labels is the training loop's business, kernels are PyTorch's.
_MODEL_IGNORED = ("cls", "cond_drop_rate", "flash_if_available", "fused_if_available")

_QUANTIZER_NAMES = {
    "vocab_size": "vocabulary",
    "Cvae": "channels",
    "v_patch_nums": "scales",
    "quant_resi": "blend",
    "share_quant_resi": "sharing",
    "using_znorm": "normalised",
    "beta": "commitment",
}
_TOKENIZER_NAMES = {
    **{("z_channels" if k == "Cvae" else k): ours for k, ours in _QUANTIZER_NAMES.items()},
    "ch": "width",
    "ch_mult": "multipliers",
    "num_res_blocks": "blocks",
    "quant_conv_ks": "kernel",
    "dropout": "dropout",
}
_TOKENIZER_DEFAULTS = {
    "using_znorm": False,
    "beta": 0.25,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "quant_conv_ks": 3,
    "dropout": 0.0,
}
# `rect` and `train` describe what was recorded, in recordings of the quantizer.
_TOKENIZER_IGNORED = ("cls", "default_qresi_counts", "test_mode", "rect", "train")


def build(config: Config, state: State) -> Parts:
    """Return the parts that a published state holds.

    Args:
        config: constructor keywords of one class, named by `cls` (VAR, VQVAE or VectorQuantizer2),
            or `{"vae": ..., "var": ...}` for both.
        state: published keys to tensors. With both parts in it they are prefixed `var/` and `vae/`;
            without prefixes it is the transformer's.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    return parts(config, state, "var", _BUILDERS)


def parts(
    config: Config, state: State, name: str, builders: dict[str, Callable[[Config, State], Parts]]
) -> Parts:
    """Return the parts that the state of a system with this tokenizer holds.

    Args:
        config, state: see `build`; what is said of `var` there holds for `name`.
        name: of the transformer's configuration, and of its prefix.
        builders: by `cls`. The first one is the transformer's.

    Raises:
        UserError: see `build`.
    """
    if "cls" in config:
        if config["cls"] not in builders:
            raise UserError(f"unknown cls {config['cls']}; there are: {', '.join(builders)}")
        return builders[config["cls"]](config, state)
    if set(config) != {"vae", name}:
        raise UserError(f"expected keys `vae` and `{name}`, or `cls`; got {', '.join(config)}")
    build_model, both = next(iter(builders.values())), with_sizes(config[name], config["vae"])
    if not any("/" in key for key in state):
        return build_model(both, state)
    states = split(state, (name, "vae"))
    model = build_model(both, states[name])
    tokenizer = _tokenizer(config["vae"], states["vae"]) if states["vae"] else Parts()
    return replace(model, tokenizer=tokenizer.tokenizer, tokenizer_spec=tokenizer.tokenizer_spec)


def blueprint(config: Config) -> Parts:
    """Return how the parts of a released checkpoint are built, without the parts themselves.

    Args:
        config: as for `build`, of a whole tokenizer or of both.
    """
    vae = config.get("vae", config)
    model = _model_spec(with_sizes(config["var"], vae), l2_norm=True) if "var" in config else None
    return replace(tokenizer_blueprint(vae), model_spec=model)


def tokenizer_blueprint(config: Config) -> Parts:
    """Return how a tokenizer is built, and the schedule that it is published with."""
    schedule = Schedule.scales(config["v_patch_nums"])
    return Parts(schedule=schedule, tokenizer_spec=_tokenizer_spec(config))


def _model(config: Config, state: State) -> Parts:
    # Copies of the released files from before April 2024 are of the other attention variant.
    spec = _model_spec(config, l2_norm=has_l2_norm(state))
    model = recipe.build(spec, "VAR")
    var_keys.MODEL.load(model, state, "the state of VAR")
    return Parts(model=model, model_spec=spec, schedule=Schedule.scales(spec["ladder"]))


def _model_spec(config: Config, l2_norm: bool) -> Spec:
    return {"_target_": "var.models.var.VAR", **model_numbers(config, "VAR", l2_norm)}


def model_numbers(config: Config, what: str, l2_norm: bool) -> Spec:
    """Return the numbers of a next-scale transformer's constructor.

    Args:
        config: published keywords.
        what: name of the configuration in error messages.
        l2_norm: whether attention is cosine attention, where the configuration does not say.

    Raises:
        UserError: a keyword is unknown or missing.
    """
    defaults = {**_MODEL_DEFAULTS, "attn_l2_norm": l2_norm}
    return renamed(config, _MODEL_NAMES, what, defaults=defaults, ignored=_MODEL_IGNORED)


def has_l2_norm(state: State) -> bool:
    """Return whether a transformer's published state is of the variant with cosine attention."""
    return any("scale_mul_1H11" in key for key in state)


def with_sizes(model: Config, vae: Config) -> Config:
    """Return a transformer's configuration with what its tokenizer's says of codes."""
    return {"vocab_size": vae["vocab_size"], "Cvae": vae["z_channels"], **model}


def _tokenizer(config: Config, state: State) -> Parts:
    spec = _tokenizer_spec(config)
    for half in ("encoder", "decoder"):
        spec[half] = any(key.startswith(f"{half}.") for key in state)
    tokenizer = recipe.build(spec, "VQVAE")
    var_keys.tokenizer(config["share_quant_resi"]).load(tokenizer, state, "the state of VQVAE")
    return _tokenizer_parts(tokenizer, spec, config)


def _tokenizer_spec(config: Config) -> Spec:
    return _spec("var.tokenizers.multiscale.MultiScaleVQ", config, _TOKENIZER_NAMES, "VQVAE")


def _quantizer(config: Config, state: State) -> Parts:
    what = "VectorQuantizer2"
    spec = _spec("var.tokenizers.residual.MultiScaleQuantizer", config, _QUANTIZER_NAMES, what)
    quantizer = recipe.build(spec, what)
    var_keys.quantizer(config["share_quant_resi"]).load(quantizer, state, f"the state of {what}")
    return _tokenizer_parts(quantizer, spec, config)


def _spec(target: str, config: Config, names: dict[str, str], what: str) -> Spec:
    values = renamed(
        config,
        names,
        what,
        defaults={k: v for k, v in _TOKENIZER_DEFAULTS.items() if k in names},
        ignored=_TOKENIZER_IGNORED,
    )
    values["scales"] = len(values["scales"])
    # Unshared Phis may be published in another number than one per scale.
    values["sharing"] = values["sharing"] or config.get("default_qresi_counts", 0)
    return {"_target_": target, **values}


def _tokenizer_parts(tokenizer: Any, spec: Spec, config: Config) -> Parts:
    schedule = Schedule.scales(config["v_patch_nums"])
    return Parts(tokenizer=tokenizer, tokenizer_spec=spec, schedule=schedule)


TOKENIZERS = {"VQVAE": _tokenizer, "VectorQuantizer2": _quantizer}
_BUILDERS = {"VAR": _model, **TOKENIZERS}

# By side of the images in pixels, 16 for each cell; there are no released weights for the last.
LADDERS: Mapping[int, Ladder] = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
_VAE_FILE = "vae_ch160v4096z32.pth"


def _vae(ladder: Ladder) -> Spec:
    return {
        "cls": "VQVAE",
        "vocab_size": 4096,
        "z_channels": 32,
        "ch": 160,
        "quant_resi": 0.5,
        "share_quant_resi": 4,
        "v_patch_nums": ladder,
    }


def of_depth(
    depth: int, parameters: int | None = None, *, size: int = 256, shared: bool = False
) -> Checkpoint:
    """Return the checkpoint of a depth, released or not: all follow one rule.

    Args:
        depth: 1 or more.
        parameters: as counted in the released file; None: there is none.
        size: of its images in pixels, one of `LADDERS`.
        shared: whether blocks share a modulation.
    """
    ladder = LADDERS[size]
    var = {
        "depth": depth,
        "embed_dim": 64 * depth,
        "num_heads": depth,
        "num_classes": 1000,
        "drop_path_rate": 0.1 * depth / 24,
        "shared_aln": shared,
        "patch_nums": ladder,
    }
    return Checkpoint(
        system="var",
        repository="FoundationVision/var",
        files={"var": f"var_d{depth}.pth", "vae": _VAE_FILE},
        config={"vae": _vae(ladder), "var": var},
        parameters=parameters,
        size=size,
        sampling={"guidance": 1.5, "top_k": 900, "top_p": 0.96},
    )


CHECKPOINTS = {
    "var-d16": of_depth(16, 310_283_520),
    "var-d20": of_depth(20, 600_917_136),
    "var-d24": of_depth(24, 1_033_399_360),
    "var-d30": of_depth(30, 2_010_020_356),
    "var-d36-s": of_depth(36, 2_353_893_904, size=512, shared=True),
    "var-vae": Checkpoint(
        system="var",
        repository="FoundationVision/var",
        files={"": _VAE_FILE},
        config=_vae(LADDERS[256]),
        parameters=108_948_355,
        size=256,
    ),
}
