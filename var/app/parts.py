"""Parts of the page that Gradio does not have as they are wanted here."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# For the last input of an event: when it came, by the visitor's own clock, in ms.
NOW = "(...values) => [...values.slice(0, -1), Date.now()]"


def raw(
    component: type, read: Callable[[Any], Any] = lambda payload: payload, **more: Any
) -> Callable[..., Any]:
    """Return a component of Gradio's of which handlers get what was sent, unchecked.

    Gradio's own checks fail without a word, or with a traceback. Those copies that it makes of a
    component for each visitor are of this kind too.

    Args:
        component: its class.
        read: makes a value of what was sent.
        more: attributes of the class.
    """
    own = {"is_template": True, "preprocess": lambda _, payload: read(payload), **more}
    # Not by a class statement: Gradio's metaclass would search this file for it, and edit types.
    made: Any = ABCMeta.__new__(type(component), component.__name__, (component,), own)
    return made


@dataclass
class Stops:
    """When a visitor asked last that what is under way stops, see `NOW`; one for each visitor."""

    at: float = 0.0

    def ask(self, now: float) -> None:
        """Ask that what was begun before stops."""
        self.at = now
