"""What a call in the words of the diffusers library means in ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from var.errors import UserError
from var.pixels import to_uint8
from var.sampling import Settings

Generators = int | torch.Generator | Sequence[int | torch.Generator] | None
OUTPUTS = ("pil", "np", "pt", "latent")


def seeds_of(generator: Generators, count: int) -> list[int]:
    """Return the random stream of each of so many images; see the call of a pipeline.

    Raises:
        UserError: there are none, a list of generators is not of that length, or a seed is below 0.
    """
    if not count:
        raise UserError("there is nothing to draw: no labels, or none of each")
    if generator is None:
        generator = int(torch.randint(2**31, (), generator=torch.default_generator))
    if not isinstance(generator, Sequence):
        first = _seed(generator)
        return [first + i for i in range(count)]
    if len(generator) != count:
        raise UserError(
            f"{len(generator)} generators for {count} images: give one, or one for each"
        )
    return [_seed(each) for each in generator]


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
        UserError: the settings say it too.
    """
    if settings.get("guidance") is not None:
        raise UserError("guidance_scale and guidance are two ways to say the same: give one")
    return (scale, scale) if isinstance(scale, int | float) else scale


def _seed(generator: int | torch.Generator) -> int:
    if not isinstance(generator, int):
        # Those that were never seeded by hand may hold any 64 bits; streams have 63.
        return generator.initial_seed() % 2**63
    if generator < 0:
        raise UserError(f"seeds must be 0 or more, got {generator}")
    return generator
