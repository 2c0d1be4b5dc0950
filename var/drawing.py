"""Drawing many images: in batches that fit into memory, each image from its own random stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from var.bars import progress_bar
from var.cache.base import CacheKind
from var.condition import Condition
from var.decoding.base import Decoding
from var.decoding.loop import decide
from var.devices import is_out_of_memory
from var.errors import UserError
from var.random import Rng
from var.sampling import Sampling
from var.schedule import Schedule
from var.tokenizers.tokenizer import Canvas, Tokenizer

log = logging.getLogger(__name__)
Batch = TypeVar("Batch", bound=Sized)


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Attributes:
        tokenizer: tokens to pixels.
        schedule: the groups of an image.
        sampling: how tokens are drawn.
        decoding: who predicts and what is kept.
        device: where the weights are.
        cache: kind of the decoding's caches; None: its own choice.
        steps: show each image after every turn, not only when it is finished.
    """

    tokenizer: Tokenizer
    schedule: Schedule
    sampling: Sampling
    decoding: Decoding
    device: torch.device
    cache: CacheKind | None = None
    steps: bool = False

    def batches(
        self,
        ids: Sequence[int] | Condition,
        seeds: Sequence[int],
        *,
        batch_size: int,
        progress: bool,
    ) -> Iterator[Tensor]:
        """Yield images (b, S, 3, H, W) in [0, 1]; S is the number of turns with `steps`, else 1.

        Args:
            ids: class id of each image, -1 for none; or what each shall show.
            seeds: random stream of each image, 0 or more.
            batch_size: images at a time; halved as often as needed when memory runs out.
            progress: show a bar.

        Raises:
            UserError: no memory for a single image, or a number out of range.
        """
        if not isinstance(ids, Condition):
            ids = Condition(torch.tensor(ids, dtype=torch.int64))

        def draw(done: int, size: int, bar: tqdm[Any]) -> Iterator[Tensor]:
            for start in range(done, len(ids), size):
                yield self._images(ids[start : start + size], seeds[start : start + size], bar)

        return fitting(
            draw,
            seeds,
            self.decoding,
            self.device,
            groups=len(self.schedule),
            batch_size=batch_size,
            progress=progress,
        )

    def _images(self, given: Condition, seeds: Sequence[int], bar: tqdm[Any]) -> Tensor:
        frames: list[Tensor] = []
        for canvas in self._canvases(given, seeds, bar):
            if self.steps or canvas.done == len(self.schedule):
                with torch.inference_mode():
                    frames.append(self.tokenizer.decode(canvas).float())
        return torch.stack(frames, dim=1)

    def _canvases(self, given: Condition, seeds: Sequence[int], bar: tqdm[Any]) -> Iterator[Canvas]:
        condition = given.to(self.device)
        rng, done = Rng(seeds, self.device), 0
        for canvas in decide(
            self.tokenizer,
            self.schedule,
            condition,
            self.decoding,
            self.sampling,
            rng,
            cache=self.cache,
        ):
            bar.update(len(given) * (canvas.done - done))
            done = canvas.done
            yield canvas


def fitting(
    draw: Callable[[int, int, tqdm[Any]], Iterator[Batch]],
    seeds: Sequence[int],
    decoding: Decoding,
    device: torch.device,
    *,
    groups: int,
    number: int = 1,
    batch_size: int,
    progress: bool,
) -> Iterator[Batch]:
    """Yield what is drawn, in batches that fit into memory.

    Args:
        draw: given how many are done, the batch size, and a bar that it moves by each group, yields
            the others. Asked again when memory has run out.
        seeds: random stream of each, or its first one, 0 or more.
        decoding: whose caches are let go of when memory has run out.
        device: where that was.
        groups: that are decided for each.
        number: images that are drawn for each.
        batch_size: images at a time; halved as often as needed.
        progress: show a bar.

    Raises:
        UserError: no memory for a single image, or a number out of range.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more, got {batch_size}")
    if min(seeds, default=0) < 0:
        raise UserError(f"seeds must be 0 or more, got {min(seeds)}")
    done = 0
    with progress_bar(total=len(seeds) * groups, shown=progress, unit="group") as bar:
        while done < len(seeds):
            try:
                for batch in draw(done, batch_size, bar):
                    done += len(batch)
                    bar.set_postfix_str(f"{done} of {len(seeds)}")
                    yield batch
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not is_out_of_memory(error):
                    raise
                for cache in decoding.caches:
                    cache.release()
            if done < len(seeds):  # by now everything that the failure held is let go of
                batch_size = halved(min(batch_size, (len(seeds) - done) * number), device)
                bar.n = done * groups


def halved(batch_size: int, device: torch.device) -> int:
    """Return half a number of images that memory did not suffice for.

    Raises:
        UserError: there is no half of it.
    """
    if batch_size == 1:
        raise UserError(
            "out of memory for a single image: try precision=bf16, a smaller model, or, for models "
            "of scales, cache=scale"
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    log.warning(
        "out of memory with %d images at a time: going on with %d", batch_size, batch_size // 2
    )
    return batch_size // 2
