"""The controls of a setting on the page. They follow the model; nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import wraps
from html import escape
from typing import Any

from var.app.controls import FILTERS, LABELS, PARTS, Setting, setting
from var.app.parts import raw
from var.app.service import Service
from var.errors import UserError

Handler = Callable[..., Iterator[Any]]

_CFG = "VAR's cfg 2, here guidance=2, is 1 to 3"
# What settings are called in messages, and on the page.
_NAMES = {f"{of}.{part}": LABELS[part] for part, (of, _) in PARTS.items()}
_NAMES |= {f"edit.{name}": LABELS[name] for name in ("scale", "groups")}
# What each control is; `var.app.controls` says what it shows of a model.
_GUIDING: dict[str, tuple[str, dict[str, Any]]] = {
    "first": ("Number", {"step": 0.1}),
    "last": ("Number", {"step": 0.1, "info": _CFG}),
    "temperature": ("Number", {"step": 0.05}),
    "top_k": ("Number", {"precision": 0}),
    "top_p": ("Number", {"step": 0.01}),
    "smooth": ("Checkbox", {}),
    "steps": ("Slider", {"step": 1}),
    "solver": ("Dropdown", {}),
}
_CHOOSING: dict[str, tuple[str, dict[str, Any]]] = {
    "decoding": ("Dropdown", {}),
    "window": ("Slider", {"step": 1}),
    "closer": ("Dropdown", {}),
    "switch": ("Slider", {"step": 1}),
    "cache": ("Dropdown", {}),
    "budget": ("Slider", {}),
}
assert set(FILTERS) < set(_GUIDING) and set(PARTS) < set(_CHOOSING)


class Panel:
    """Model, classes, guidance, filters, decoding and cache.

    Args:
        gr: the module Gradio.
        service: knows the models.
        key: what ids on the page begin with.
        listen: how events are queued.
        model: the one that is chosen at first.
        classes: the ones that are chosen at first; None: as the model's controls say.
        chooses: whether there is a choice of classes.
        place: where it is; None: here.

    Model and classes are laid out at once, the rest by `options`.
    """

    def __init__(
        self,
        gr: Any,
        service: Service,
        key: str,
        listen: dict[str, Any],
        *,
        model: str,
        classes: list[int] | None = None,
        chooses: bool = True,
        place: Any = None,
    ) -> None:
        self._gr, self._service, self._key, self._classes = gr, service, key, classes
        self._listen, self._known = listen, service.controls(model)
        self._controls: dict[str, Any] = {}
        names = service.shelf.generators
        self.model = gr.Dropdown(names, value=model, label="Model", elem_id=f"{key}-model")
        if chooses:
            with place or nullcontext():
                self._add("labels", "Dropdown", {"multiselect": True})

    def options(self) -> None:
        """Lay out guidance, filters, decoding and cache."""
        gr = self._gr
        for title, kinds in (("Guidance and filters", _GUIDING), ("Decoding and cache", _CHOOSING)):
            with gr.Accordion(title), gr.Row():
                for name, (kind, fixed) in kinds.items():
                    self._add(name, kind, fixed)
        outputs = list(self._controls.values())
        follow = told(gr, len(outputs))(self._follow)
        self.model.change(follow, self.model, outputs, **self._listen)
        for choice in ("decoding", "cache"):
            self._unfold(choice, [name for name, (of, _) in PARTS.items() if of == choice])

    @property
    def inputs(self) -> list[Any]:
        """The components whose values `read` takes."""
        return [self.model, *self._controls.values()]

    def read(self, values: Sequence[Any]) -> tuple[Setting, list[int]]:
        """Return what the values of `inputs` mean: how to draw, and which classes.

        Raises:
            UserError: one that counts is empty.
        """
        model, named = values[0], dict(zip(self._controls, values[1:], strict=True))
        return setting(model, named, self._service.controls(model)), named.get("labels") or []

    def _add(self, name: str, kind: str, fixed: dict[str, Any]) -> None:
        self._controls[name] = raw(getattr(self._gr, kind))(
            **{**fixed, **self._now(name, self._known)},
            label=LABELS[name],
            elem_id=f"{self._key}-{name}",
            min_width=180,
        )

    def _now(self, name: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        fixed = {"value": self._classes} if name == "labels" and self._classes else {}
        return known[name] | fixed

    def _follow(self, model: str) -> Iterator[list[Any]]:
        known = self._service.controls(model)
        yield [self._gr.update(**self._now(name, known)) for name in self._controls]

    def _unfold(self, choice: str, parts: Sequence[str]) -> None:
        """Show the settings of a choice with it only."""

        def show(chosen: str) -> Any:
            shown = [self._gr.update(visible=chosen in PARTS[name][1]) for name in parts]
            return shown if len(shown) > 1 else shown[0]

        self._controls[choice].change(
            show,
            self._controls[choice],
            [self._controls[name] for name in parts],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def told(gr: Any, outputs: int, says: bool = False) -> Callable[[Handler], Handler]:
    """Make what is at fault with the input one line on the page, without a traceback.

    Args:
        gr: the module Gradio.
        outputs: of the handler; they stay as they are.
        says: whether the first one is a line of text, which is replaced.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def guarded(*values: Any) -> Iterator[Any]:
            try:
                yield from handler(*values)
            except UserError as error:  # names of files come from outside, and the page shows HTML
                line = " ".join(str(error).split())
                for name, label in _NAMES.items():
                    line = line.replace(name, label)
                line = escape(line, quote=False)
                gr.Warning(line)
                shown = [gr.skip() for _ in range(outputs)]
                yield [line, *shown[1:]] if says else shown

        return guarded

    return decorate
