"""What a call in the words of the diffusers library means in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from var.devices import parse_device, pieces
from var.errors import UserError
from var.pixels import to_uint8
from var.sampling import Settings

Generators = int | torch.Generator | Sequence[int | torch.Generator] | None
OUTPUTS = ("pil", "np", "pt", "latent")

# Options of diffusers that ask for what is so anyway; those of code are none, as none is run.
_SO_ANYWAY: dict[str, tuple[Any, ...]] = {
    "use_safetensors": (True,),
    "safe_serialization": (True,),
    "low_cpu_mem_usage": (True, False),
    "local_files_only": (False,),
    "force_download": (False,),
    "push_to_hub": (False,),
}
_OF_CODE = ("trust_remote_code", "custom_pipeline", "custom_revision")


def seeds_of(generator: Generators, count: int) -> list[int]:
    """Return the random stream of each of so many images; see the call of a pipeline.

    Raises:
        UserError: there are none, a list of generators is not of that length, a seed is below 0 or
            no number.
    """
    if not count:
        raise UserError("there is nothing to draw: no labels, or none of each")
    if generator is None:
        generator = int(torch.randint(2**31, (), generator=torch.default_generator))
    if not isinstance(generator, Sequence) or isinstance(generator, str):
        first = _seed(generator)
        return [first + i for i in range(count)]
    if len(generator) != count:
        raise UserError(
            f"{len(generator)} generators for {count} images: give one, or one for each"
        )
    return [_seed(each) for each in generator]


def batches_of(count: int, size: int) -> list[slice]:
    """Return so many images cut into batches of a size.

    Raises:
        UserError: the size is below 1.
    """
    if size < 1:
        raise UserError(f"batch_size must be 1 or more, got {size}")
    return [slice(piece.start, piece.stop) for piece in pieces(count, size)]


def shown_as(images: Tensor, kind: str) -> Any:
    """Return images (B, 3, H, W) in [0, 1] as one of `OUTPUTS`."""
    if kind == "np":
        return images.movedim(1, -1).cpu().numpy()
    if kind == "pil":
        pixels = to_uint8(images).movedim(1, -1).cpu().numpy()
        return [Image.fromarray(each) for each in pixels]
    return images


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Check that a value is one that is known.

    Raises:
        UserError: it is not.
    """
    if value not in known:
        raise UserError(f"{name}={value!r}: there are {', '.join(known)}")


def guidance_of(scale: float | tuple[float, float], settings: Settings) -> tuple[float, float]:
    """Return our guidance of that of diffusers, which is the same for all groups, or a pair.

    Raises:
        UserError: the settings say it too, or it is no number and no pair of them.
    """
    if settings.get("guidance") is not None:
        raise UserError("guidance_scale and guidance are two ways to say the same: give one")
    ends = (scale, scale) if isinstance(scale, Real) else scale
    if not (
        isinstance(ends, Sequence) and len(ends) == 2 and all(isinstance(x, Real) for x in ends)
    ):
        raise UserError(f"guidance_scale must be a number, or those of two groups, got {scale!r}")
    return float(ends[0]), float(ends[1])


def number_type(dtype: object) -> torch.dtype:
    """Return the number type of a generator: float32 if None is asked for.

    Raises:
        UserError: it is none of floating-point numbers.
    """
    if dtype is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"unknown number type {dtype!r}: say torch.bfloat16, for example")
    return dtype


def one_device(device: object) -> torch.device:
    """Return the device that is meant by a `device_map`: the CPU if None is given.

    Raises:
        UserError: it is no device, or none of this machine.
    """
    if isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str | None) or device in ("auto", "balanced"):
        raise UserError(f"device_map={device!r}: a model of var is on one device: say 'cuda'")
    return parse_device(device or "cpu")


def check_options(options: Mapping[str, Any], who: str) -> None:
    """Check options of diffusers that have no counterpart here: they must ask for nothing.

    Raises:
        UserError: one asks for what would not be done.
    """
    odd = [
        name
        for name, value in options.items()
        if value is not None and name not in _OF_CODE and value not in _SO_ANYWAY.get(name, ())
    ]
    if odd:
        raise UserError(
            f"{who} does not know {', '.join(odd)}: leave {'it' if len(odd) == 1 else 'them'} out"
        )


def _seed(generator: object) -> int:
    if isinstance(generator, torch.Generator):
        # Those that were never seeded by hand may hold any 64 bits; streams have 63.
        return generator.initial_seed() % 2**63
    if not isinstance(generator, Integral):
        raise UserError(f"generator must be a number or a torch.Generator, got {generator!r}")
    if (seed := int(generator)) < 0:
        raise UserError(f"seeds must be 0 or more, got {seed}")
    return seed
