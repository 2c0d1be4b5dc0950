"""Checks of VAR, by kind of case. How its numbers map to our pieces: see `var.systems.var`."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden_checks import var_tokenizer, var_training, var_transformer
from tests.golden_checks.case import Case, Excuse

CHECKS: dict[str, Callable[[Case], None]] = {
    "quant_": var_tokenizer.check_quantizer,
    "sampling_filters": var_transformer.check_filters,
    "schedules_and_groups": var_training.check_schedules,
    "val_transform": var_training.check_transform,
    "var_d16_published": var_transformer.check_published,
    "var_edit": var_transformer.check_edit,
    "var_greedy": var_transformer.check_greedy,
    "var_more_smooth": var_transformer.check_smooth,
    "var_sampled": var_transformer.check_sampled,
    "var_tf": var_transformer.check_teacher_forcing,
    "var_train_step": var_training.check_train_step,
    "vqvae_full": var_tokenizer.check_vqvae,
    "vqvae_published": var_tokenizer.check_vqvae_published,
}

NOT_APPLICABLE = (
    Excuse(
        "quant_",
        "phi_index",
        "`quant_resi=0` leaves Phi out: there is nothing to index",
        when=lambda case: case.config["quant_resi"] == 0,
    ),
)
