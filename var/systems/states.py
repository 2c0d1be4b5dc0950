"""Runs as the published systems store them: the way back from `var.published.build`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from var.errors import UserError
from var.models.mvar import MVAR
from var.models.raster import Raster
from var.models.var import VAR
from var.store import Run
from var.systems import llamagen_keys, llamagen_vq, mvar, var_keys
from var.systems.base import Parts
from var.tokenizers.multiscale import MultiScaleVQ
from var.tokenizers.singlescale import VQ

# How many codes LlamaGen remembers as used lately.
_USED = 65536


def published_states(run: Run | Parts) -> dict[str, dict[str, Tensor]]:
    """Return the published state dicts of a run's parts by the prefix that `build` knows them by.

    They have all that a strict loader expects. Running counts of used codes, which decide nothing
    and are not kept here, are zeros.

    Raises:
        UserError: a part has no published form.
    """
    states = dict[str, dict[str, Tensor]]()
    for part in (run.model, run.tokenizer):
        if part is None:
            continue
        prefix, publish = _FORMS.get(type(part), ("", None))
        if publish is None:
            raise UserError(
                f"a {type(part).__name__} cannot be written as published: "
                f"there are {', '.join(kind.__name__ for kind in _FORMS)}"
            )
        try:
            states[prefix] = publish(part)
        except KeyError as error:
            raise UserError(
                f"this {type(part).__name__} has no published form: {error.args[0]}"
            ) from error
    return states


def _llamagen(model: nn.Module) -> dict[str, Tensor]:
    return llamagen_keys.MODEL.publish(model.state_dict())


def _vae(tokenizer: Any) -> dict[str, Tensor]:
    quantizer = tokenizer.quantizer
    state = var_keys.tokenizer(quantizer.sharing).publish(tokenizer.state_dict())
    hits = torch.zeros(quantizer.scales, len(quantizer.codebook.weight))
    return {**state, "quantize.ema_vocab_hit_SV": hits}


def _vq(tokenizer: Any) -> dict[str, Tensor]:
    levels = int(tokenizer.factor).bit_length()
    state = llamagen_vq.table(levels).publish(tokenizer.state_dict())
    return {**state, "quantize.codebook_used": torch.zeros(_USED)}


_FORMS: dict[type[nn.Module], tuple[str, Callable[[Any], dict[str, Tensor]]]] = {
    VAR: ("var", var_keys.publish),
    MVAR: ("mvar", mvar.publish),
    Raster: ("model", _llamagen),
    MultiScaleVQ: ("vae", _vae),
    VQ: ("vq", _vq),
}
