"""Progress bars: on terminals and in notebooks, never in log files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(
    items: Iterable[Any] | None = None, *, shown: bool = True, **how: Any
) -> tqdm[Any]:
    """Return a bar of tqdm over items, or one to be moved on by hand.

    Args:
        items: what is gone through.
        shown: whether there shall be a bar at all; the environment variable TQDM_DISABLE overrules
            it, as everywhere in tqdm.
        how: see tqdm: total, desc, unit, ...
    """
    wanted = shown and not os.environ.get("TQDM_DISABLE")
    return tqdm(items, disable=None if wanted else True, **how)  # None: unless on a terminal
