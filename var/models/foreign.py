"""Key tables: published state-dict names and shapes to ours, and back.

A table is data: one line per kind of key. Loading through it is strict, and errors speak of the
published keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from var.errors import UserError

State = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """One line of a key table.

    Names may hold fields, the same on both sides: `{i}`, one letter, stands for a number,
    `{rest}`, a word, for any text.

    Attributes:
        theirs: published name; of several, equal shares of ours, joined along its first dimension.
        ours: name in our module.
        shape: einops pattern from the published shape to ours, empty if they agree.
    """

    theirs: str | tuple[str, ...]
    ours: str
    shape: str = ""

    @property
    def shares(self) -> tuple[str, ...]:
        """Published names, in the order in which they are joined."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def match(self, name: str) -> tuple[str, int] | None:
        """Return our name of a published one, and which share it is; None: not this line."""
        for place, pattern in enumerate(self._patterns[1:]):
            if found := pattern.fullmatch(name):
                return self.ours.format(**found.groupdict()), place
        return None

    def published(self, name: str) -> tuple[str, ...] | None:
        """Return the published names of one of ours, or None if the line does not apply."""
        found = self._patterns[0].fullmatch(name)
        return found and tuple(share.format(**found.groupdict()) for share in self.shares)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return published tensors as ours: a copy if there are several, else none."""
        if self.shape:
            tensors = [rearrange(tensor, self.shape) for tensor in tensors]
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]

    def part(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return ours as the published tensors; the inverse of `join`, without a copy."""
        shares = tensor.chunk(len(self.shares)) if len(self.shares) > 1 else (tensor,)
        left, _, right = self.shape.partition("->")
        return [rearrange(t, f"{right} -> {left}") for t in shares] if self.shape else shares

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(name) for name in (self.ours, *self.shares)]


def inside(theirs: str, ours: str, keys: Iterable[Key]) -> tuple[Key, ...]:
    """Return the lines of a part of a module, for the part of that name in the whole."""

    def within(key: Key) -> Key:
        shares = tuple(f"{theirs}.{share}" for share in key.shares)
        return Key(shares, f"{ours}.{key.ours}", key.shape)

    return tuple(within(key) for key in keys)


@dataclass(frozen=True)
class KeyTable:
    """How a published state dict maps to a module.

    Attributes:
        keys: the lines; the first that matches a name counts.
        derived: published names that are dropped because they follow from the configuration.
    """

    keys: tuple[Key, ...]
    derived: tuple[str, ...] = ()

    def adopt(self, state: State) -> dict[str, Tensor]:
        """Return a published state under our names and in our shapes, without derived keys.

        Raises:
            KeyError: no line applies to a name, or others that it is joined with are missing.
        """
        found: dict[str, tuple[Key, dict[int, Tensor]]] = {}
        for name, tensor in state.items():
            if not self._drops(name):
                key, (ours, place) = self._line(name, Key.match)
                found.setdefault(ours, (key, {}))[1][place] = tensor
        for ours, (key, shares) in found.items():
            if len(shares) < len(key.shares):
                missing = set(key.published(ours) or ()) - state.keys()
                raise KeyError(f"{', '.join(sorted(missing))} are missing: parts of {ours}")
        return {
            ours: key.join([shares[place] for place in sorted(shares)])
            for ours, (key, shares) in found.items()
        }

    def publish(self, state: State) -> dict[str, Tensor]:
        """Return our state under the published names and in the published shapes.

        Raises:
            KeyError: no line applies to a name.
        """
        result: dict[str, Tensor] = {}
        for name, tensor in state.items():
            key, theirs = self._line(name, Key.published)
            result |= zip(theirs, key.part(tensor), strict=True)
        return result

    def load(self, module: nn.Module, state: State, what: str) -> None:
        """Give `module` the tensors of a published state: it owns them from then on.

        Only those that are joined are copied.

        Args:
            module: built for the state, on any device, `meta` included.
            state: published names to tensors.
            what: name of the state in error messages.

        Raises:
            UserError: keys are missing, unexpected or of another shape; it lists them.
        """
        ours = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
        expected = self.publish(ours)
        unknown = state.keys() - expected.keys()
        complaints = [
            *_listed("missing", expected.keys() - state.keys()),
            *_listed("unexpected", (name for name in unknown if not self._drops(name))),
            *_listed("of another shape", _misfits(expected, state)),
        ]
        if complaints:
            raise UserError(f"{what} does not fit its configuration: {'; '.join(complaints)}")
        module.load_state_dict(self.adopt(state), strict=True, assign=True)

    def _drops(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._derived)

    @cached_property
    def _derived(self) -> list[re.Pattern[str]]:
        return [_pattern(name) for name in self.derived]

    def _line(self, name: str, read: Callable[[Key, str], T | None]) -> tuple[Key, T]:
        """Return the line that applies to a name, and what it makes of it."""
        for key in self.keys:
            if (new := read(key, name)) is not None:
                return key, new
        raise KeyError(f"no line of the key table applies to {name}")


def _pattern(name: str) -> re.Pattern[str]:
    """Return the regular expression of a name with fields."""
    parts = re.split(r"{(\w+)}", name)
    for i, field in enumerate(parts):
        inside = r"\d+" if len(field) == 1 else ".+"
        parts[i] = f"(?P<{field}>{inside})" if i % 2 else re.escape(field)
    return re.compile("".join(parts))


def _misfits(expected: State, state: State) -> list[str]:
    return [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]


def _listed(kind: str, names: Iterable[str], most: int = 10) -> list[str]:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{len(names)} {kind}: {', '.join(names[:most])}{more}"] if names else []
