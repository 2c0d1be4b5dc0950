"""Ending a run when somebody asks for it: a scheduler, before it takes the machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What schedulers send ahead of the end; Slurm's --signal can be told to send the second.
_ASKING = (signal.SIGTERM, signal.SIGUSR1)


class Requests:
    """Signals that ask for the end, noted from entering this context to leaving it.

    Outside the main thread, where signals do not arrive, nothing is noted.

    Attributes:
        number: of the last signal; 0: none came.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Requests:
        if threading.current_thread() is threading.main_thread():
            self._before = {asking: signal.signal(asking, self._note) for asking in _ASKING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for asking, handler in self._before.items():
            signal.signal(asking, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number


class Stopped(SystemExit):
    """The end of a run that was asked for by a signal; the process ends with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
