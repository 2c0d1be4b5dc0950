"""Checks of FlowAR, by kind of case. How its numbers map to ours: see `var.systems.flowar`."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden_checks import flowar_head, flowar_transformer, flowar_vae
from tests.golden_checks.case import Case, Excuse

CHECKS: dict[str, Callable[[Case], None]] = {
    "backbone": flowar_transformer.check_backbone,
    "head_": flowar_head.check_head,
    "head_block": flowar_head.check_block,
    "plumbing": flowar_head.check_plumbing,
    "sample": flowar_transformer.check_sample,
    "train_loss": flowar_transformer.check_train_loss,
    "vae_decode": flowar_vae.check_decode,
    "vae_encode": flowar_vae.check_encode,
}

NOT_APPLICABLE: tuple[Excuse, ...] = ()
