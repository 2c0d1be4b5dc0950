"""The controls of a setting on the page. They follow the model; nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import wraps
from html import escape
from typing import Any

from var.app.controls import FILTERS, PARTS, Setting, setting
from var.app.service import Service
from var.errors import UserError

Handler = Callable[..., Iterator[Any]]

# What each control is; `var.app.controls` says what it shows of a model.
_GUIDING: dict[str, tuple[str, dict[str, Any]]] = {
    "first": ("Number", {"label": "Guidance (1: none)", "step": 0.1}),
    "last": ("Number", {"label": "… at the end", "step": 0.1}),
    "temperature": ("Number", {"label": "Temperature", "step": 0.05}),
    "top_k": ("Number", {"label": "Top-k (0: all)", "precision": 0, "minimum": 0}),
    "top_p": ("Number", {"label": "Top-p (0: all)", "step": 0.01, "minimum": 0, "maximum": 1}),
    "smooth": ("Checkbox", {"label": "Smooth: mix codes"}),
    "steps": ("Slider", {"label": "Solver steps", "minimum": 1, "maximum": 100, "step": 1}),
    "solver": ("Dropdown", {"label": "Solver"}),
}
_CHOOSING: dict[str, tuple[str, dict[str, Any]]] = {
    "decoding": ("Dropdown", {"label": "Decoding"}),
    "window": ("Slider", {"label": "Tokens at a time", "minimum": 2, "maximum": 64, "step": 1}),
    "closer": ("Dropdown", {"label": "Closing model"}),
    "switch": ("Slider", {"label": "Scales before it takes over", "step": 1}),
    "cache": ("Dropdown", {"label": "Cache"}),
    "budget": ("Slider", {"label": "Share of it that is kept", "minimum": 0.01, "maximum": 1}),
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
                self._add("labels", "Dropdown", {"label": "Classes", "multiselect": True})

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
        self._controls[name] = getattr(self._gr, kind)(
            **{**fixed, **self._now(name, self._known)},
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
                line = escape(" ".join(str(error).split()))
                gr.Warning(line)
                shown = [gr.skip() for _ in range(outputs)]
                yield [line, *shown[1:]] if says else shown

        return guarded

    return decorate
