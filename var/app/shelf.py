"""The pipelines that are loaded now: those few that were used last.

Closing models of collaborative decoding are among them, and count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from var import hub
from var.errors import UserError
from var.pipeline import Pipeline, load
from var.recipe import Recipe


class Shelf:
    """Models by name. Whoever uses it from several threads holds a lock.

    Args:
        names: of the models that are offered; no other one is ever loaded.
        device: where the weights go.
        dtype: of the generators.
        files: folder with the files of published checkpoints, see `var.load`.
        room: how many are kept; two at least while one closes for another. What a request under
            way needs stays in memory until that has ended.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        files: str | None = None,
        room: int = 2,
    ) -> None:
        self.names, self.device, self.dtype, self.files = tuple(names), device, dtype, files
        self.room = room
        self._outlines = {name: hub.outline(name) for name in names}
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()  # the latest last

    @property
    def generators(self) -> list[str]:
        """Names of the models that make images of classes, or may: of some only the hub knows."""
        return [name for name, outline in self._outlines.items() if _draws(outline)]

    def companions(self, name: str) -> list[str]:
        """Return the names of generators that seem to share the tokenizer of another one."""
        mine = self._outlines[name]
        if mine is None:
            return []
        others = [other for other in self.generators if other != name]
        return [other for other in others if _alike(mine, self._outlines[other])]

    def pipe(self, name: str, closer: str | None = None) -> Pipeline:
        """Return a pipeline, loaded if it is not there; the least recently used ones make room.

        Args:
            name: of the model.
            closer: of the one that closes for it, which becomes its companion, on its tokenizer.

        Raises:
            UserError: one is not offered, or cannot be loaded; or they do not go together.
        """
        if name not in self._loaded:
            self._make_room(name)
            self._loaded[name] = load(name, device=self.device, dtype=self.dtype, files=self.files)
        self._loaded.move_to_end(name)
        pipe = self._loaded[name]
        if closer is not None and closer != name:
            self._accompany(pipe, name, closer)
        return pipe

    def _accompany(self, pipe: Pipeline, name: str, closer: str) -> None:
        if closer not in pipe.companions:
            # Loaded alone it has a tokenizer of its own, and nobody has looked whether they agree.
            self._make_room(closer, name)
            self._loaded[closer] = pipe.companion(closer)
        self._loaded.move_to_end(closer)

    def _make_room(self, name: str, used: str | None = None) -> None:
        """Drop what is loaded by a name, and the least recently used others if need be."""
        if name not in self._outlines:
            raise UserError(f"model {name} is not offered here: there are {', '.join(self.names)}")
        for old in sorted(self._loaded, key=name.__ne__):
            if old == name or (old != used and len(self._loaded) >= self.room):
                del self._loaded[old]
                for pipe in self._loaded.values():
                    pipe.companions.pop(old, None)


def _draws(outline: Recipe | None) -> bool:
    return outline is None or (outline.backbone is not None and outline.data.name != "texts")


def _alike(mine: Recipe, other: Recipe | None) -> bool:
    return (
        other is not None
        and (other.tokenizer, other.schedule) == (mine.tokenizer, mine.schedule)
        and other.data.classes == mine.data.classes
    )
