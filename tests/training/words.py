"""The words by which tests train tiny tokenizers of digits, and generators on them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra import compose, initialize_config_module
from safetensors.torch import load_file
from torch import Tensor

from var.scripts.train import main

Words = tuple[str, ...]

TRAINER = (
    "trainer.batch_size=8",
    "trainer.steps=6",
    "trainer.rate=2e-3",
    "trainer.warmup_steps=2",
    "trainer.log_every=1",
    "trainer.preview_every=0",
    "trainer.checkpoint_every=3",
    "trainer.cpu=true",
)
SCALES = ("schedule=[1,2,4]", *TRAINER)
CELLS = ("schedule={raster:4}", *TRAINER)
CODES = (
    "experiment=digits-tokenizer",
    "name=run",
    "tokenizer.vocabulary=16",
    "tokenizer.channels=4",
    "tokenizer.width=8",
    "tokenizer.groups=4",
    "task.revive=2",
    *SCALES,
)
GRID = (
    "name=run",
    "tokenizer=vq",
    "tokenizer.vocabulary=16",
    "tokenizer.channels=4",
    "tokenizer.inner=4",
    "tokenizer.width=8",
    "tokenizer.groups=4",
    "tokenizer.entropy=0.1",
    "task.revive=2",
    *CELLS,
)
LATENTS = (
    "name=run",
    "tokenizer=kl",
    "task=kl",
    "tokenizer.vae.block_out_channels=[8,8,8]",
    "tokenizer.vae.norm_num_groups=4",
    *SCALES,
)
VAR = (
    "experiment=digits-var",
    "name=var",
    "backbone.depth=1",
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.drop=0",
    *SCALES,
)
MVAR = (
    "name=mvar",
    "tokenizer=trained",
    "backbone=mvar",
    "backbone.depth=1",
    "backbone.width=32",
    "backbone.heads=2",
    "+backbone.drop=0",
    *SCALES,
)
FLOWAR = (
    "name=flowar",
    "tokenizer=trained",
    "backbone=flowar",
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.encoder_depth=1",
    "backbone.decoder_depth=1",
    "backbone.head_depth=1",
    "backbone.head_width=16",
    "backbone.drop=0",
    "backbone.attention_drop=0",
    *SCALES,
)
RASTER = (
    "name=raster",
    "tokenizer=trained",
    "backbone=raster",
    "backbone.depth=1",
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.drop=0",
    "backbone.token_drop=0",
    *CELLS,
)


def run(folder: Path, *overrides: str, base: Words = CODES) -> dict[str, Tensor]:
    """Train by the real configs; return the weights of the newest checkpoint."""
    train(folder, *base, *overrides)
    newest = sorted((folder / name(base) / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


def train(folder: Path, *words: str) -> None:
    """Train by the real configs."""
    with initialize_config_module("var.configs", version_base="1.3"):
        main(compose("train", overrides=[*words, f"runs={folder}"]))


def name(base: Words) -> str:
    """Return the name of the run that some words train."""
    return next(word for word in base if word.startswith("name=")).removeprefix("name=")


def forget() -> None:
    """Forget the precision and number of processes of the last run."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


if __name__ == "__main__":  # one of several processes: train what a file lists, [folder, words]
    for place, *words in json.loads(Path(sys.argv[1]).read_text()):
        train(Path(place), *words)
        assert PartialState().num_processes == int(os.environ["WORLD_SIZE"])
