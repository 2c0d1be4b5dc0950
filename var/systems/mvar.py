"""M-VAR as published: attention inside scales, Mamba-2 across them (arXiv 2411.10433).

Tokenizer, sampler and numbers are those of VAR: see `var.systems.var`. How the others map to our
pieces:

- teacher forcing is one forward pass over a fully written canvas, in training and evaluation mode
  alike: scales are apart in both (those of the original only in training).
- of a block, `attn_in` is `norm(x, scale1, shift1)`, `attn_out` what `attention.project` returns,
  `mamba_in` and `mamba_out` what `mamba` is given and returns, `ffn_out` what `mlp` returns.
- generation hands on a state instead of running Mamba over everything again.
- a lone `Mamba2` layer is `parts.model`: `zxbcdt` is its `in_proj`, `conv` the first result of
  `convolve`, `ssm` that of `recur`, `normed` that of `gated`; `conv_tail_p` and `ssm_state_p` are
  the `State` after p positions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from var import recipe
from var.errors import UserError
from var.models.foreign import Key, KeyTable
from var.models.mvar import MVAR
from var.nn.mamba import Mamba2
from var.schedule import Schedule
from var.systems import var, var_keys
from var.systems.base import Checkpoint, Config, Parts, Spec, State, renamed

# Models of this depth and more are of the variant with cosine attention.
_L2_NORM_FROM = 21

KEYS = KeyTable(
    keys=(*var_keys.MODEL.keys, Key("blocks.{i}.mamba.{rest}", "blocks.{i}.mamba.{rest}")),
    derived=(*var_keys.MODEL.derived, "blocks.{i}.attn.patch_nums"),
)

_MIXER_KEYS = KeyTable(keys=(Key("{rest}", "{rest}"),))
_MIXER_NAMES = {
    "d_model": "width",
    "d_state": "state",
    "d_conv": "kernel",
    "expand": "expand",
    "headdim": "head",
    "norm_eps": "eps",
}
# What M-VAR's own layers are, of which there is one form, and what all layers are that there are.
_MIXER = {"d_state": 64, "d_conv": 4, "expand": 2, "headdim": 64, "norm_eps": 1e-5}
_ALWAYS = {"ngroups": 1, "norm_before_gate": False}


def build(config: Config, state: State) -> Parts:
    """Return the parts that a published state holds.

    Args:
        config: constructor keywords of one class, named by `cls` (MVAR, Mamba2 or one of the
            tokenizer's), or `{"vae": ..., "mvar": ...}` for both. Depth, width and heads are those
            of the state where the configuration does not give a width (`embed_dim`): the names of
            the released files are no proof of their sizes.
        state: published keys to tensors. With both parts in it they are prefixed `mvar/` and
            `vae/`; without prefixes it is the transformer's.

    Raises:
        UserError: configuration and state do not fit; names the keys.
    """
    return var.parts(config, state, "mvar", _BUILDERS)


def blueprint(config: Config) -> Parts:
    """Return how the parts of a released checkpoint are built, without the parts themselves.

    Args:
        config: as for `build`, of both, with a depth.
    """
    depth = config["mvar"]["depth"]
    sizes = _sized(config["mvar"], depth)
    spec = _spec(var.with_sizes(sizes, config["vae"]), l2_norm=depth >= _L2_NORM_FROM)
    return replace(var.tokenizer_blueprint(config["vae"]), model_spec=spec)


def publish(model: MVAR) -> dict[str, Tensor]:
    """Return the published state dict of a model, with the buffers that a strict loader expects.

    Raises:
        UserError: the model has a modulation shared by all blocks, which was never published.
    """
    if not isinstance(model.shared, nn.Identity):
        raise UserError("an M-VAR with shared_adaln has no published form")
    state = var_keys.with_buffers(model, KEYS, model.schedule[:].mask(own=True))
    for i in range(len(model.blocks)):
        state[f"blocks.{i}.attn.patch_nums"] = torch.tensor(model.schedule.sizes).int()
    return state


def _model(config: Config, state: State) -> Parts:
    if "embed_dim" not in config:
        config = _sized(config, _depth(state) or config.get("depth", 1))
    spec = _spec(config, l2_norm=var.has_l2_norm(state))
    model = recipe.build(spec, "M-VAR")
    KEYS.load(model, state, "the state of M-VAR")
    return Parts(model=model, model_spec=spec, schedule=Schedule.scales(spec["ladder"]))


def _depth(state: State) -> int:
    return len({key.split(".")[1] for key in state if key.startswith("blocks.")})


def _sized(config: Config, depth: int) -> Config:
    """Return a configuration with the published sizes of a depth."""
    sizes = {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth}
    return {**config, **sizes, "drop_path_rate": 0.1 * depth / 24}


def _spec(config: Config, l2_norm: bool) -> Spec:
    numbers = {key: value for key, value in config.items() if key != "mamba"}
    _check_fixed(config.get("mamba") or {}, {**_MIXER, **_ALWAYS}, "the Mamba layers of M-VAR")
    _check_fixed({"shared_aln": config.get("shared_aln", False)}, {"shared_aln": False}, "M-VAR")
    return {"_target_": "var.models.mvar.MVAR", **var.model_numbers(numbers, "M-VAR", l2_norm)}


def _mixer(config: Config, state: State) -> Parts:
    what = "Mamba2"
    _check_fixed({k: v for k, v in config.items() if k in _ALWAYS}, _ALWAYS, what)
    ignored = ("cls", *_ALWAYS)
    numbers = renamed(config, _MIXER_NAMES, what, defaults=_MIXER, ignored=ignored)
    try:
        with torch.device("meta"):
            mixer = Mamba2(**numbers)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
    _MIXER_KEYS.load(mixer, state, f"the state of {what}")
    return Parts(model=mixer)


def _check_fixed(config: Config, published: Config, what: str) -> None:
    """Check that settings are those that were published.

    Raises:
        UserError: one of them is not; names all that are not.
    """
    odd = [f"{key}={value}" for key, value in config.items() if published.get(key) != value]
    if odd:
        raise UserError(
            f"{what}: there is no published form with {', '.join(odd)}; published are "
            + ", ".join(f"{key}={value}" for key, value in published.items())
        )


_BUILDERS = {"MVAR": _model, "Mamba2": _mixer, **var.TOKENIZERS}


def of_depth(depth: int, parameters: int | None = None) -> Checkpoint:
    """Return the checkpoint of a depth, released or not: all follow one rule.

    Args:
        depth: 1 or more.
        parameters: as counted in the released file; None: there is none.
    """
    like = var.CHECKPOINTS["var-d16"]
    known = {key: like.config["var"][key] for key in ("num_classes", "patch_nums")}
    return replace(
        like,
        system="mvar",
        repository="OliverRen/M-VAR",
        repositories={"vae": like.repository},
        files={"mvar": f"d{depth}.pth", "vae": like.files["vae"]},
        config={"vae": like.config["vae"], "mvar": {"depth": depth, **known}},
        parameters=parameters,
    )


# Of the files only d32.pth is known for sure; the others are called by the same rule.
CHECKPOINTS = {
    "mvar-d12": of_depth(12, 198_435_424),
    "mvar-d16": of_depth(16, 464_157_184),
    "mvar-d20": of_depth(20, 900_528_736),
    "mvar-d24": of_depth(24, 1_550_067_136),
    "mvar-d32": of_depth(32, 3_658_707_968),
}
