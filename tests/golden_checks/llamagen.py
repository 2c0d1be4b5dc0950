"""Checks of LlamaGen, by kind of case. How its numbers map to ours: see `var.systems.llamagen`."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden_checks import llamagen_tokenizer, llamagen_transformer
from tests.golden_checks.case import Case, Excuse

CHECKS: dict[str, Callable[[Case], None]] = {
    **llamagen_tokenizer.CHECKS,
    "c2i_generate": llamagen_transformer.check_generate,
    "c2i_logits": llamagen_transformer.check_logits,
    "c2i_train": llamagen_transformer.check_train,
    "rope2d": llamagen_transformer.check_angles,
    "sampling_filters": llamagen_transformer.check_filters,
    "t2i_generate": llamagen_transformer.check_generate,
    "t2i_logits": llamagen_transformer.check_logits,
    "t2i_train": llamagen_transformer.check_train,
}

NOT_APPLICABLE: tuple[Excuse, ...] = llamagen_tokenizer.NOT_APPLICABLE
