"""What a published system provides: a builder, and a table of its released checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from var.errors import UserError
from var.schedule import Schedule

Config = Mapping[str, Any]
State = Mapping[str, Tensor]
Spec = dict[str, Any]
# Sides of an image's scales, coarse to fine.
Ladder = tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """What a published state holds, built and loaded; None for what it does not hold.

    Attributes:
        model: the backbone; of two, the one that opens an image.
        tokenizer: the tokenizer, or the part of it that the state holds.
        schedule: the groups in which the system decides an image.
        model_spec: how to build such a backbone: `_target_` and the numbers of its constructor.
        tokenizer_spec: the same for the tokenizer.
        closer: a second backbone, which goes on where the first stops (collaborative decoding).
        closer_spec: how to build it.
    """

    model: nn.Module | None = None
    tokenizer: nn.Module | None = None
    schedule: Schedule | None = None
    model_spec: Spec | None = None
    tokenizer_spec: Spec | None = None
    closer: nn.Module | None = None
    closer_spec: Spec | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint, or what one would be that follows the same rules.

    Attributes:
        system: name of the builder.
        repository: on the Hugging Face hub.
        files: prefix of the state's keys to file in the repository; no prefix if there is one file.
            Where a file goes by several names, the last is that in the repository.
        config: for the builder.
        parameters: of the model or, where there is none, of the tokenizer; None if it was never
            released.
        size: side of its images in pixels.
        sampling: published settings, keywords of `Sampling`.
        decoding: published decoding, see `Recipe.decoding`; None: group by group.
        repositories: by prefix, those of files that lie in another one.
    """

    system: str
    repository: str
    files: Mapping[str, str | tuple[str, ...]]
    config: Config
    parameters: int | None
    size: int
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    decoding: Config | None = None
    repositories: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Score:
    """A published figure of a checkpoint.

    Attributes:
        metric: by its name in reports of `var-evaluate`: FID, IS, precision, recall, or rFID, that
            of a tokenizer's reconstructions.
        value: as it was published.
        source: who says so.
    """

    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Evaluation:
    """How the published figures of a checkpoint came about.

    Attributes:
        scores: of a metric on which sources disagree there are several, the one to reach first.
        reference: the file of what generated images were measured against; of a tokenizer, the
            images that it reconstructed.
        size: side in pixels of the images that were measured.
        sampling: keywords of `Sampling`; none for a tokenizer, which reconstructs the reference.
        decoding: as in `Checkpoint`.
        per_class: number of images of each class; None: as many as the reference has.
        precision: None: it is not known.
        resize: how generated images of another size came to `size`; None: they were of it.
        notes: what the above does not say: what is not known, and where sources disagree.
    """

    scores: tuple[Score, ...]
    reference: str
    size: int
    sampling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    decoding: Config | None = None
    per_class: int | None = None
    precision: str | None = None
    resize: str | None = None
    notes: tuple[str, ...] = ()


class System(Protocol):
    """What a module of `var.systems` offers."""

    @property
    def CHECKPOINTS(self) -> Mapping[str, Checkpoint]:
        """Released checkpoints by name."""
        ...

    def build(self, config: Config, state: State) -> Parts:
        """Return the parts that `state` holds."""
        ...


def renamed(
    config: Config,
    names: Mapping[str, str],
    what: str,
    *,
    defaults: Config | None = None,
    ignored: Collection[str] = (),
) -> Spec:
    """Return a published configuration under our names.

    Args:
        config: the original constructor's keywords.
        names: published name to ours.
        what: name of the configuration in error messages.
        defaults: the original's values for keywords that may be left out.
        ignored: published names that mean nothing here.

    Raises:
        UserError: a keyword is unknown or missing.
    """
    if unknown := sorted(config.keys() - names.keys() - set(ignored)):
        raise UserError(f"unknown keys in the configuration of {what}: {', '.join(unknown)}")
    values = {**(defaults or {}), **config}
    if missing := sorted(names.keys() - values.keys()):
        raise UserError(f"missing keys in the configuration of {what}: {', '.join(missing)}")
    return {ours: values[theirs] for theirs, ours in names.items()}


def split(state: State, prefixes: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """Return the parts of a state of several models by prefix, without `prefix/`.

    Raises:
        UserError: a key has none of the prefixes.
    """
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    for key, tensor in state.items():
        prefix, _, name = key.partition("/")
        if prefix not in parts:
            raise UserError(f"{key} begins with none of: {', '.join(f'{p}/' for p in prefixes)}")
        parts[prefix][name] = tensor
    return parts
