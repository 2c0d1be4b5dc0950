"""Key tables: published state-dict names and shapes to ours, and back.

A table is data: one line per kind of key. Loading through it is strict, and errors speak of the
published keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from einops import rearrange
from torch import Tensor, nn

from var.errors import UserError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Key:
    """One line of a key table.

    Names may hold fields, the same on both sides: `{i}`, one letter, stands for a number,
    `{rest}`, a word, for any text.

    Attributes:
        theirs: published name.
        ours: name in our module.
        shape: einops pattern from the published shape to ours, empty if they agree.
    """

    theirs: str
    ours: str
    shape: str = ""

    @cached_property
    def back(self) -> Key:
        """The line read from right to left."""
        left, arrow, right = self.shape.partition("->")
        shape = f"{right.strip()} -> {left.strip()}" if arrow else ""
        return Key(theirs=self.ours, ours=self.theirs, shape=shape)

    def match(self, name: str) -> str | None:
        """Return our name of a published one, or None if the line does not apply."""
        found = self._pattern.fullmatch(name)
        return self.ours.format(**found.groupdict()) if found else None

    def convert(self, tensor: Tensor) -> Tensor:
        """Return a published tensor in our shape."""
        return rearrange(tensor, self.shape) if self.shape else tensor

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _pattern(self.theirs)


def inside(theirs: str, ours: str, keys: Iterable[Key]) -> tuple[Key, ...]:
    """Return the lines of a part of a module, for the part of that name in the whole."""
    return tuple(Key(f"{theirs}.{k.theirs}", f"{ours}.{k.ours}", k.shape) for k in keys)


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
        """Return a published state under our names and in our shapes, without derived keys."""
        kept = ((name, tensor) for name, tensor in state.items() if not self._drops(name))
        return self._translate(self.keys, kept)

    def publish(self, state: State) -> dict[str, Tensor]:
        """Return our state under the published names and in the published shapes."""
        return self._translate([key.back for key in self.keys], state.items())

    def load(self, module: nn.Module, state: State, what: str) -> None:
        """Give `module` the tensors of a published state: no copy, it owns them from then on.

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

    def _translate(
        self, keys: Iterable[Key], items: Iterable[tuple[str, Tensor]]
    ) -> dict[str, Tensor]:
        keys, result = list(keys), dict[str, Tensor]()
        for name, tensor in items:
            for key in keys:
                if (new := key.match(name)) is not None:
                    result[new] = key.convert(tensor)
                    break
            else:
                raise KeyError(f"no line of the key table applies to {name}")
        return result


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
