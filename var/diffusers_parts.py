"""Our modules and settings as components of a pipeline of the diffusers library.

Imported by those who use them only: diffusers is slow to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from var import recipe
from var.diffusers_calls import number_type, one_device
from var.diffusers_layout import component, load_module, save_weights


class Part(ModelMixin, ConfigMixin):
    """A module of ours as a component.

    Args:
        spec: how to build it, see `var.recipe.Recipe`.

    Attributes:
        module: it. Without memory until weights are loaded.
    """

    @register_to_config
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.module: nn.Module = recipe.build(spec, "spec")

    @classmethod
    def of(cls, module: nn.Module, spec: dict[str, Any]) -> Self:
        """Return the component of a module and of the spec by which it was built."""
        part = cls(spec=spec)
        part.module = module
        return part.eval()

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | Path, **options: Any
    ) -> Self:
        """Return the component in a folder.

        Args:
            folder: as written by `save_pretrained`.
            options: `dtype` or `torch_dtype`, `subfolder`, and `device_map` if it is a device;
                diffusers gives others, which are about files and memory and mean nothing here.

        Raises:
            UserError: a file is missing, damaged, or does not fit; `device_map` is no device.
        """
        place = Path(folder) / (options.get("subfolder") or "")
        device = one_device(options.get("device_map"))
        dtype = cls._own(number_type(options.get("dtype") or options.get("torch_dtype")))
        spec = component(place, cls.__name__).get("spec") or {}
        return cls.of(load_module(place, spec, device, dtype), spec)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, folder: str | Path
    ) -> None:
        """Write the configuration, and the weights as safetensors."""
        self.save_config(folder)
        save_weights(Path(folder), self.module)

    def to(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, *args: Any, **kwargs: Any
    ) -> Self:
        """Move it, or change its type; diffusers would warn of modules that there are not."""
        nn.Module.to(self, *args, **kwargs)
        return self

    @staticmethod
    def _own(dtype: torch.dtype) -> torch.dtype:
        return dtype


class VARTransformer(Part):
    """The generator."""


class VARTokenizer(Part):
    """Pixels to tokens and back; in float32 whatever the generator is in, see `store.load`."""

    def to(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, *args: Any, **kwargs: Any
    ) -> Self:
        """Move it to a device; number types are not heeded."""
        places = [each for each in args if not isinstance(each, torch.dtype)]
        others = {key: value for key, value in kwargs.items() if key != "dtype"}
        return super().to(*places, **others) if places or others else self

    @staticmethod
    def _own(dtype: torch.dtype) -> torch.dtype:
        return torch.float32


class VARScheduler(SchedulerMixin, ConfigMixin):
    """All that is no module: see `var.recipe.Recipe`.

    Args:
        schedule: the groups in which images are decided, as configs say it.
        data: what the model was trained on: `name`, `classes`, `size`.
        sampling: recommended settings.
        decoding: recommended decoding.
        budget: of the compressed cache, as YAML.
    """

    @register_to_config
    def __init__(
        self,
        schedule: Any,
        data: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        decoding: dict[str, Any] | None = None,
        budget: str | None = None,
    ) -> None:
        pass
