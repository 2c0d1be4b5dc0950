"""Key tables of VAR: the published state dicts of its transformer and tokenizer, name by name."""

from __future__ import annotations

import torch
from torch import Tensor

from var.models.foreign import Key, KeyTable
from var.models.nextscale import NextScale
from var.models.var import VAR

MODEL = KeyTable(
    keys=(
        Key("pos_start", "stem.start", "1 l d -> l d"),
        Key("pos_1LC", "stem.positions", "1 l d -> l d"),
        Key("word_embed.{rest}", "stem.linear.{rest}"),
        Key("class_emb.weight", "stem.classes.weight"),
        Key("lvl_embed.weight", "stem.levels"),
        Key("shared_ada_lin.1.{rest}", "shared.{rest}"),
        Key("blocks.{i}.ada_gss", "blocks.{i}.modulation.table", "1 1 p d -> p d"),
        Key("blocks.{i}.ada_lin.1.{rest}", "blocks.{i}.modulation.{rest}"),
        Key("blocks.{i}.attn.scale_mul_1H11", "blocks.{i}.attention.scale.log", "1 n 1 1 -> n"),
        Key("blocks.{i}.attn.q_bias", "blocks.{i}.attention.q_bias"),
        Key("blocks.{i}.attn.v_bias", "blocks.{i}.attention.v_bias"),
        Key("blocks.{i}.attn.mat_qkv.weight", "blocks.{i}.attention.qkv.weight"),
        Key("blocks.{i}.attn.proj.{rest}", "blocks.{i}.attention.proj.{rest}"),
        Key("blocks.{i}.ffn.fc1.{rest}", "blocks.{i}.mlp.rise.{rest}"),
        Key("blocks.{i}.ffn.fc2.{rest}", "blocks.{i}.mlp.fall.{rest}"),
        Key("head_nm.ada_lin.1.{rest}", "modulation.{rest}"),
        Key("head.{rest}", "head.linear.{rest}"),
    ),
    derived=("lvl_1L", "attn_bias_for_masking", "blocks.{i}.attn.zero_k_bias"),
)

_ENCODER = ("encoder.{rest}", "quant_conv.{rest}")
_DECODER = ("decoder.{rest}", "post_quant_conv.{rest}")
# The names of the Phis depend on how many scales share one.
_PHI = {
    0: Key("quant_resi.{t}.{rest}", "phi.{t}.{rest}"),
    1: Key("quant_resi.qresi.{rest}", "phi.0.{rest}"),
}
_SHARED_PHI = Key("quant_resi.qresi_ls.{t}.{rest}", "phi.{t}.{rest}")


def quantizer(sharing: int) -> KeyTable:
    """Return the table of the quantizer alone.

    The running usage counts of codes are dropped: they are no part of the function, and older files
    hold them for another number of scales.

    Args:
        sharing: the published `share_quant_resi`.
    """
    keys = (Key("embedding.weight", "codebook.weight"), _PHI.get(sharing, _SHARED_PHI))
    return KeyTable(keys=keys, derived=("ema_vocab_hit_SV",))


def tokenizer(sharing: int) -> KeyTable:
    """Return the table of the whole tokenizer; `sharing` as for `quantizer`."""
    inner = quantizer(sharing)
    return KeyTable(
        keys=(
            *(Key(name, name) for name in _ENCODER + _DECODER),
            *(Key(f"quantize.{k.theirs}", f"quantizer.{k.ours}") for k in inner.keys),
        ),
        derived=tuple(f"quantize.{name}" for name in inner.derived),
    )


def publish(model: VAR) -> dict[str, Tensor]:
    """Return the published state dict of a model, with the buffers that a strict loader expects."""
    return with_buffers(model, MODEL, model.schedule[:].mask())


def with_buffers(model: NextScale, keys: KeyTable, allowed: Tensor | None) -> dict[str, Tensor]:
    """Return the published state dict of a model, with the buffers that transformers share.

    Args:
        model: whose weights these are.
        keys: table of its names.
        allowed: (L, L) who may attend to whom; None: everyone to everyone.
    """
    span, state = model.schedule[:], keys.publish(model.state_dict())
    bias = torch.zeros(len(span), len(span))
    if allowed is not None:
        bias.masked_fill_(~allowed, -torch.inf)
    state["lvl_1L"] = span.levels()[None].clone()
    state["attn_bias_for_masking"] = bias[None, None]
    for i in range(len(model.blocks)):
        prefix = f"blocks.{i}.attn"
        state[f"{prefix}.zero_k_bias"] = torch.zeros_like(state[f"{prefix}.q_bias"])
    return state
