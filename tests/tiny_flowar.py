"""A tiny FlowAR and its autoencoder as they would be published: keywords, states, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from var import recipe
from var.models.flowar import FlowAR
from var.systems import flowar_keys, kl

CHANNELS, WIDTH, HEAD_WIDTH = 4, 16, 24
LADDER = (1, 2, 4)

# Keywords of the original constructors.
MODEL = {
    "vae_embed_dim": CHANNELS,
    "scale": LADDER,
    "encoder_embed_dim": WIDTH,
    "encoder_depth": 2,
    "encoder_num_heads": 2,
    "decoder_embed_dim": WIDTH,
    "decoder_depth": 1,
    "decoder_num_heads": 4,
    "diffloss_d": 2,
    "diffloss_w": HEAD_WIDTH,
}
VAE = {
    "ch": 32,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "resolution": 8,
    "embed_dim": CHANNELS,
    "enc_attn_resolutions": (4,),
    "dec_attn_resolutions": (),
}


def model(cross: bool = False, **changes: Any) -> FlowAR:
    """Return the transformer that `MODEL` describes, in evaluation mode."""
    settings = {
        "channels": CHANNELS,
        "classes": 1000,
        "ladder": LADDER,
        "width": WIDTH,
        "encoder_depth": 2,
        "decoder_depth": 1,
        "heads": 2,
        "decoder_heads": 4,
        "head_depth": 2,
        "head_width": HEAD_WIDTH,
        "cross": cross,
    }
    made = tiny.shaken(FlowAR(**{**settings, **changes}), scale=0.2).eval()
    assert isinstance(made, FlowAR)
    return made


def state(cross: bool = False) -> dict[str, Tensor]:
    """Return the published state of `model(cross)`, with what follows from its configuration."""
    made = model(cross)
    frequencies = [f"encoder_blocks.{i}.attn" for i in range(2)] + ["decoder_blocks.0.attn"]
    inner = ("attn", "crossattn") if cross else ("attn",)
    frequencies += [f"flownet.res_blocks.{i}.{name}" for i in range(2) for name in inner]
    derived = {f"{name}.rope.freqs": torch.zeros(2) for name in frequencies}
    length = made.schedule.starts[-1]
    derived["mask"] = torch.zeros(1, 1, length, length)
    return {**flowar_keys.MODEL.publish(made.state_dict()), **derived}


def vae_state() -> dict[str, Tensor]:
    """Return a published state of the autoencoder that `VAE` describes."""
    spec = kl.blueprint({"vae": VAE}).tokenizer_spec
    assert spec is not None
    made = tiny.shaken(recipe.build(spec, "it", device="cpu"), scale=0.1, seed=1)
    return kl.table(len(VAE["ch_mult"])).publish(made.vae.state_dict())  # type: ignore[union-attr]


def release(folder: Path, cross: bool = False) -> None:
    """Write the two files of a release: a flat state dict, and one below an entry `model`."""
    torch.save(state(cross), folder / "FlowAR-T.pth")
    torch.save({"model": vae_state()}, folder / "kl16.ckpt")
