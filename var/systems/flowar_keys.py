"""Key tables of FlowAR: published names and shapes of tensors to ours (section 2)."""

from __future__ import annotations

from var.models.foreign import Key, KeyTable, inside

# Of blocks of the backbone and of the head.
_BOTH = (
    Key("attn.qkv.{rest}", "attention.qkv.{rest}"),
    Key("attn.proj.{rest}", "attention.proj.{rest}"),
    Key("mlp.fc1_g.{rest}", "mlp.gate.{rest}"),
    Key("mlp.fc1_x.{rest}", "mlp.rise.{rest}"),
    Key("mlp.fc2.{rest}", "mlp.fall.{rest}"),
)
_BLOCK = (*_BOTH, Key("ada_lin.1.{rest}", "modulation.{rest}"))
_HEAD_BLOCK = (
    *_BOTH,
    Key("ada_lin.{rest}", "modulation.{rest}"),
    Key("ada_lin_attn.{rest}", "attention_modulation.{rest}"),
    Key("ada_lin_mlp.{rest}", "mlp_modulation.{rest}"),
    Key("crossattn.{rest}", "cross.{rest}"),
    Key("norm2_1.{rest}", "norm.{rest}"),
    Key("norm2_2.{rest}", "source_norm.{rest}"),
)


_HEAD = (
    Key("time_embed.mlp.0.{rest}", "time.rise.{rest}"),
    Key("time_embed.mlp.2.{rest}", "time.fall.{rest}"),
    Key("cond_embed.{rest}", "condition.{rest}"),
    Key("input_proj.{rest}", "inlet.{rest}"),
    *inside("res_blocks.{i}", "blocks.{i}", _HEAD_BLOCK),
    Key("final_layer.adaLN_modulation.1.{rest}", "modulation.{rest}"),
    Key("final_layer.linear.{rest}", "outlet.{rest}"),
)

# The rotary frequencies and the mask follow from head width and ladder.
BLOCK = KeyTable(keys=_HEAD_BLOCK, derived=("attn.rope.freqs", "crossattn.rope.freqs"))
HEAD = KeyTable(keys=_HEAD, derived=("res_blocks.{i}.{rest}.rope.freqs",))
MODEL = KeyTable(
    keys=(
        Key("class_emb.weight", "classes.weight"),
        Key("z_proj.{rest}", "inlet.{rest}"),
        Key("z_proj_ln.weight", "inlet_norm.weight"),
        Key("encoder_norm.weight", "encoder_norm.weight"),
        Key("decoder_norm.weight", "decoder_norm.weight"),
        Key("decoder_embed.{rest}", "bridge.{rest}"),
        Key("encoder_pos_embed_learned", "encoder_places", "1 l d -> l d"),
        Key("decoder_pos_embed_learned", "decoder_places", "1 l d -> l d"),
        Key("diffusion_pos_embed_learned", "head_places", "1 l d -> l d"),
        *inside("encoder_blocks.{i}", "encoder.{i}", _BLOCK),
        *inside("decoder_blocks.{i}", "decoder.{i}", _BLOCK),
        *inside("flownet", "head.net", _HEAD),
    ),
    derived=(
        "mask",
        "encoder_blocks.{i}.attn.rope.freqs",
        "decoder_blocks.{i}.attn.rope.freqs",
        "flownet.res_blocks.{i}.{rest}.rope.freqs",
    ),
)
