"""Drawing many images: in batches that fit into memory, each image from its own random stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

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
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        if min(seeds, default=0) < 0:
            raise UserError(f"seeds must be 0 or more, got {min(seeds)}")
        if not isinstance(ids, Condition):
            ids = Condition(torch.tensor(ids, dtype=torch.int64))
        done, groups = 0, len(self.schedule)
        with tqdm(total=len(ids) * groups, disable=not progress, unit="group") as bar:
            while done < len(ids):
                part = slice(done, done + batch_size)
                images = self._attempt(ids[part], seeds[part], bar)
                if images is None:
                    batch_size = halved(min(batch_size, len(ids) - done), self.device)
                    bar.n = done * groups
                    continue
                done += len(images)
                bar.set_postfix_str(f"{done} of {len(ids)} images")
                yield images

    def _attempt(self, given: Condition, seeds: Sequence[int], bar: tqdm[Any]) -> Tensor | None:
        frames: list[Tensor] = []
        try:
            for canvas in self._canvases(given, seeds, bar):
                if self.steps or canvas.done == len(self.schedule):
                    with torch.inference_mode():
                        frames.append(self.tokenizer.decode(canvas).float())
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            for cache in self.decoding.caches:
                cache.release()
            return None  # and let go of everything that the failure held
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
