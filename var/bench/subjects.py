"""What can be measured: a combination of pieces, or a function from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from var import choices
from var.bench.stopwatch import Stopwatch, WatchedDecoding, WatchedTokenizer
from var.condition import Condition
from var.decoding.loop import generate
from var.errors import UserError
from var.pipeline import Pipeline
from var.random import Rng
from var.sampling import Sampling

# Class ids, random seeds and a device to images (B, 3, H, W) in [0, 1].
Function = Callable[[list[int], list[int], torch.device], Tensor]


class Subject(Protocol):
    """Something that makes images."""

    def draw(
        self, ids: Sequence[int], seeds: Sequence[int], watch: Stopwatch | None = None
    ) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1].

        Args:
            ids: class of each image, -1 for none.
            seeds: random stream of each image.
            watch: told what happens, by subjects that can tell.
        """
        ...

    def release(self) -> None:
        """Give back what is kept from run to run."""
        ...


class Combination:
    """A model with a decoding and a cache of its own.

    Args:
        pipe: the model; may be shared.
        decoding: a name, or a mapping of a name and its settings; `recommended`: by the run.
        cache: likewise, or what makes one.
        sampling: how tokens are drawn.
        greedy: take the most likely tokens instead of drawing.

    Raises:
        UserError: no such decoding or cache, or not with these settings.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        decoding: str | Mapping[str, Any],
        cache: choices.CacheChoice,
        sampling: Sampling,
        greedy: bool = False,
    ) -> None:
        self.pipe, self.sampling, self.greedy = pipe, sampling, greedy
        self.decoding, self.cache = choices.decoding(pipe, decoding), choices.cache(pipe, cache)

    def draw(
        self, ids: Sequence[int], seeds: Sequence[int], watch: Stopwatch | None = None
    ) -> Tensor:
        """Return images as `Pipeline` makes them, from proxies if someone watches."""
        pipe, tokenizer, decoding = self.pipe, self.pipe.tokenizer, self.decoding
        if watch is not None:
            tokenizer = WatchedTokenizer(tokenizer, watch)
            decoding = WatchedDecoding(decoding, watch)
        condition = Condition(torch.tensor(ids, dtype=torch.int64, device=pipe.device))
        rng = None if self.greedy else Rng(seeds, pipe.device)
        images = generate(
            tokenizer, pipe.schedule, condition, decoding, self.sampling, rng, cache=self.cache
        )
        return images.float()

    def release(self) -> None:
        """Give the caches' room back."""
        for cache in self.decoding.caches:
            cache.release()


class Foreign:
    """A function from elsewhere.

    Args:
        place: `module:function`, the module importable.
        device: handed to the function.

    Raises:
        UserError: there is no such function.
    """

    def __init__(self, place: str, device: torch.device) -> None:
        home, _, name = place.partition(":")
        if not (home and name):
            raise UserError(f"call={place}: say module:function")
        try:
            function = getattr(import_module(home), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"call={place} is not to be had ({error}): is its folder on PYTHONPATH?"
            ) from error
        if not callable(function):
            raise UserError(f"call={place} is not a function")
        self.place, self.device = place, device
        self.function = cast(Function, function)

    def draw(
        self, ids: Sequence[int], seeds: Sequence[int], watch: Stopwatch | None = None
    ) -> Tensor:
        """Return the function's images; nothing is known of its stages.

        Raises:
            UserError: it fails, or returns something else.
        """
        try:
            images = self.function(list(ids), list(seeds), self.device)
        except Exception as error:  # whatever it is: the code is not ours
            raise UserError(f"{self.place} raises {type(error).__name__}: {error}") from error
        if not (isinstance(images, Tensor) and images.ndim == 4 and len(images) == len(ids)):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"{self.place} must return images ({len(ids)}, 3, H, W), got {got}")
        return images

    def release(self) -> None:
        """Nothing that is known of."""
