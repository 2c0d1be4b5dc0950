"""The most memory that a piece of work takes."""

from __future__ import annotations

import ctypes
import gc
import sys
from threading import Event, Thread
from types import TracebackType
from typing import Self

import psutil
import torch

# Seconds between two looks at the process.
_PAUSE = 0.002


class Peak:
    """Measures the most memory that is in use inside a `with`, beyond what was before it.

    On CUDA these are the allocator's own figures. Elsewhere the process is looked at every few
    milliseconds: what lives shorter than that, or reuses freed memory, is not seen.

    Args:
        device: where the work is done.

    Attributes:
        bytes: the result, once the `with` is left.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._process, self._done = psutil.Process(), Event()

    def __enter__(self) -> Self:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        _give_back_freed()
        self._before = self._most = self._process.memory_info().rss
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._most = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._thread.join()
        self.bytes = max(0, self._most - self._before)

    def _look(self) -> None:
        while True:
            self._most = max(self._most, self._process.memory_info().rss)
            if self._done.wait(_PAUSE):
                return


def _give_back_freed() -> None:
    # Otherwise the work would be served from what earlier work left behind, and seem to need none.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
