"""Key table of LlamaGen's transformer: published names of tensors to ours (section 2)."""

from __future__ import annotations

from var.models.foreign import Key, KeyTable, inside

_BLOCK = (
    Key("attention_norm.weight", "attention_norm.weight"),
    Key("attention.wqkv.weight", "attention.qkv.weight"),
    Key("attention.wo.weight", "attention.proj.weight"),
    Key("ffn_norm.weight", "mlp_norm.weight"),
    Key("feed_forward.w1.weight", "mlp.gate.weight"),
    Key("feed_forward.w3.weight", "mlp.rise.weight"),
    Key("feed_forward.w2.weight", "mlp.fall.weight"),
)
# What stands for no text is published once and never trained.
NULL_TEXT = "cls_embedding.uncond_embedding"

# Angles and masks follow from the sizes; caches are left behind by whoever sampled before saving.
MODEL = KeyTable(
    keys=(
        Key("tok_embeddings.weight", "codes.weight"),
        Key("cls_embedding.embedding_table.weight", "source.weight"),
        Key("cls_embedding.cap_proj.fc1.weight", "source.rise.weight"),
        Key("cls_embedding.cap_proj.fc2.weight", "source.fall.weight"),
        Key(NULL_TEXT, "source.null"),
        *inside("layers.{i}", "blocks.{i}", _BLOCK),
        Key("norm.weight", "norm.weight"),
        Key("output.weight", "head.linear.weight"),
    ),
    derived=("freqs_cis", "causal_mask", "layers.{i}.attention.kv_cache.{rest}"),
)
