"""Models as programs of `torch.export`, which run where this package is not installed.

An image takes one program for each group, `export_step`, and one at the end, `export_decoder`. They
speak of tokens; drawing these from what is predicted is the caller's:

    logits, memories = steps[k](tokens of all groups before k, labels, memories)
    images = decoder(all tokens)

For guidance give each image two rows, one of them with label -1, and mix their logits. Letters: R
rows, any number of them; L positions, C latent channels, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import tree_map

from var.cache.base import Cache, Layered, State, Step
from var.cache.dense import Dense
from var.cache.none import NoMemory
from var.condition import Condition
from var.errors import UserError
from var.heads.categorical import Categorical
from var.pipeline import Pipeline
from var.schedule import Schedule, Span
from var.tokenizers.tokenizer import Canvas

# Of each layer: keys and values (R, N, S, d) of attention, or the state of a recurrence.
Memories = Sequence[State]

# Rows of the example that is traced: not 1, which would be taken for a constant.
_ROWS = 2


def export_decoder(pipe: Pipeline) -> ExportedProgram:
    """Return the program that makes images (R, 3, H, W) in [0, 1] of tokens, in float32.

    Its argument: `tokens`, ids (R, L) or latent vectors (R, L, C) of all groups, one after another.
    Those by diffusers' autoencoders it takes for fewer than 64 images at a time.
    """
    program = _Decoder(pipe.schedule, pipe.run.tokenizer)
    return _exported(program, {"tokens": _tokens(pipe, len(pipe.schedule))})


def export_step(pipe: Pipeline, group: int) -> ExportedProgram:
    """Return the program that predicts a group, in the number type of the generator.

    Its arguments: `tokens`, those of all groups before it, as the decoder has them; `labels` (R,)
    int64, -1 for no class; `memories`, what the program of the group before returned, `[]` for the
    first one. It returns the logits (R, L, V) of the group, unguided, in float32, or the features
    (R, L, D) for the head if that is no categorical one; and the memories for the next program.

    Raises:
        UserError: there is no such group; there is no generator, or it reads texts.
    """
    last = len(pipe.schedule) - 1
    if not 0 <= group <= last:
        raise UserError(f"there is no group {group}: this model decides groups 0 to {last}")
    if (pipe.run.recipe.backbone or {}).get("text") is not None:
        raise UserError("the steps of a model that reads texts cannot be exported")
    labels = torch.zeros(_ROWS, dtype=torch.int64, device=pipe.device)
    before: Memories = []
    for k in range(group):
        given = {"tokens": _tokens(pipe, k), "labels": labels, "memories": before}
        with torch.no_grad():
            before = _Step(pipe, k)(**given)[1]
    given = {"tokens": _tokens(pipe, group), "labels": labels, "memories": before}
    return _exported(_Step(pipe, group), given)


class _Program(nn.Module):
    """What is exported. Its parts are none of its modules: weights that it uses become constants,
    and those that it does not use stay behind."""

    def __init__(self, schedule: Schedule, *parts: Any) -> None:
        super().__init__()
        self.schedule, self.parts = schedule, parts

    def canvas(self, tokens: Tensor, groups: int) -> Canvas:
        """Return the canvas of the tokens of the first groups."""
        canvas = self.parts[0].blank(tokens.shape[0], self.schedule)
        return (
            canvas.write(*tokens.split(self.schedule.sizes[:groups], dim=1)) if groups else canvas
        )


class _Decoder(_Program):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.parts[0].decode(self.canvas(tokens, len(self.schedule)))


class _Step(_Program):
    def __init__(self, pipe: Pipeline, group: int) -> None:
        super().__init__(pipe.schedule, pipe.run.tokenizer, pipe.model)
        self.span = pipe.schedule[group : group + 1]

    def forward(
        self, tokens: Tensor, labels: Tensor, memories: Memories
    ) -> tuple[Tensor, list[State]]:
        model, span, cache = self.parts[1], self.span, _handed(self.parts[1], memories)
        cache.seen = span.start
        h = model(self.canvas(tokens, span.start).read(span), span, Condition(labels), cache)
        if isinstance(model.head, Categorical):
            h = model.head.linear(h).float()
        last = span.stop == len(self.schedule)
        return h, [] if last else [tuple(memory.tensors()) for memory in cache.layers]


class _Memory(NoMemory):
    """A memory of tensors that are handed in, and on."""

    def __init__(self, held: State = ()) -> None:
        self.held = held

    def extend(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        if self.held:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.held, (k, v), strict=True))
        self.held = k, v
        return k, v

    def recur(self, step: Step, span: Span) -> Tensor:
        out, state = step(self.held or None, True)
        self.held = state or ()
        return out

    def tensors(self) -> Sequence[Tensor]:
        return self.held


def _handed(model: Any, memories: Memories) -> Cache:
    """Return a cache of what was handed in."""
    fresh = [()] * len(model.new_cache(Dense).layers)
    return cast(Cache, Layered([_Memory(held) for held in memories or fresh]))


def _tokens(pipe: Pipeline, groups: int) -> Tensor:
    """Return tokens of the first groups for an example: any will do."""
    tokenizer: Any = pipe.run.tokenizer
    shape, terms = (_ROWS, pipe.schedule.starts[groups]), tokenizer.terms
    if "vocabulary" in terms:
        return torch.zeros(shape, dtype=torch.int64, device=pipe.device)
    return torch.zeros(*shape, terms["channels"], device=pipe.device)


# As if gradients were wanted: the shortcuts taken where they are not are those of one machine.
@torch.enable_grad()
def _exported(program: nn.Module, given: dict[str, Any]) -> ExportedProgram:
    program.eval()
    program(**given)  # tables that are computed once are to hold numbers, not what a trace has
    shapes = tree_map(lambda tensor: {0: Dim.DYNAMIC}, given)
    return export(program, (), given, dynamic_shapes=shapes)
