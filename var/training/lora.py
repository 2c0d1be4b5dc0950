"""Low-rank adapters beside the linear maps of a frozen backbone, by the package `peft`.

An adapter is in the backbone while it is trained; what is stored is the backbone with the adapters
merged into its weights, which needs neither this module nor the package, and the adapters alone, in
the package's own format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from var.errors import UserError
from var.nn.linear import Linear

WEIGHTS = "adapter_model.safetensors"  # as peft calls them
_PREFIX = "base_model.model."


def maps(model: nn.Module) -> Iterator[str]:
    """Yield the names of the linear maps that can have adapters.

    Maps that do more than that, such as modulations, cannot.
    """
    for name, part in model.named_modules():
        if type(part) in (Linear, nn.Linear):
            yield name


def adapt(
    model: nn.Module, names: Sequence[str], *, rank: int, alpha: float, dropout: float = 0.0
) -> None:
    """Freeze a backbone, in place, and give maps of it fresh adapters, which change nothing yet.

    Args:
        model: the backbone.
        names: of the maps.
        rank: of the adapters.
        alpha: what they weigh, in units of `1 / rank`.
        dropout: of what they read, 0..1.

    Raises:
        UserError: a number is out of range, or the package is missing.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise UserError(
            f"tuning.lora.rank={rank}, tuning.lora.dropout={dropout}: the rank must be 1 or more, "
            "the dropout lie in 0..1"
        )
    config = _peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(re.escape(name) for name in names),  # whole names, not ends of them
    )
    _inject(model, config)


def merged(model: nn.Module) -> nn.Module:
    """Return a backbone without adapters: itself if it has none, else a copy that does the same."""
    return _merge(deepcopy(model)) if hasattr(model, "peft_config") else model


def save(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a backbone alone; do nothing if it has none."""
    if not hasattr(model, "peft_config"):
        return
    state = _peft().get_peft_model_state_dict(model)
    state = {_PREFIX + key: value.cpu().contiguous() for key, value in state.items()}
    config: Any = model.peft_config
    config["default"].save_pretrained(str(folder))
    part = folder / f".{WEIGHTS}"  # so that nobody reads half of it
    save_file(state, part, metadata={"format": "pt"})
    part.replace(folder / WEIGHTS)


def apply(model: nn.Module, folder: str | Path) -> None:
    """Merge the adapters in a folder, see `save`, into a backbone like that they were trained on.

    Raises:
        UserError: they cannot be read, or are those of another backbone.
    """
    peft = _peft()
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        state = load_file(Path(folder) / WEIGHTS)
        _inject(model, config)
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
        odd = peft.set_peft_model_state_dict(model, state).unexpected_keys
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"the adapter {folder} does not fit this model: {first}") from error
    if odd:
        raise UserError(f"the adapter {folder} does not fit this model: it has no {odd[0]}")
    _merge(model)


def _merge(model: nn.Module) -> nn.Module:
    layer = _peft().tuners.lora.LoraLayer
    for name, part in list(model.named_modules()):
        if isinstance(part, layer):
            part.merge()
            model.set_submodule(name, part.get_base_layer())
    del model.peft_config
    return model


def _inject(model: nn.Module, config: Any) -> None:
    config._register_custom_module({Linear: _adapted()})
    _peft().inject_adapter_in_model(config, model)


@cache
def _adapted() -> type[nn.Module]:
    """Return peft's layer for a `Linear`, whose callers may bring a bias, or ask for the GELU."""
    lora = _peft().tuners.lora

    class Adapted(lora.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.product(x, self.bias)

        def product(self, x: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
            y = self.get_base_layer().product(x, bias)
            for name in self.active_adapters:
                low = self.lora_A[name](self.lora_dropout[name](x))
                y = y + self.lora_B[name](low) * self.scaling[name]
            return F.gelu(y, approximate="tanh") if gelu else y

    return Adapted


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "adapters need the package peft: pip install 'var-toolkit[lora]', or leave "
            "tuning.lora.rank out"
        ) from error
    return peft
