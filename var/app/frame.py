"""What the tabs of the page have in common: fields, buttons, and a place for results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from var.app import pictures
from var.app.job import Drawn, Wanted
from var.app.panel import Handler, Panel, told
from var.app.parts import NOW, Stops, raw
from var.app.service import Service
from var.errors import UserError

_SMALL = 128  # pixels: images below are enlarged on the screen without smoothing


@dataclass(frozen=True)
class Frame:
    """What all tabs share.

    Attributes:
        gr: the module Gradio.
        service: answers.
        model: the one that is chosen at first.
        folder: where PNGs wait until Gradio has copied them.
        listen: how events are queued.
        megapixels: that an upload may have.
    """

    gr: Any
    service: Service
    model: str
    folder: Path
    listen: dict[str, Any]
    megapixels: float

    def panel(self, key: str, **more: Any) -> Panel:
        """Return the controls of a setting."""
        return Panel(self.gr, self.service, key, self.listen, model=self.model, **more)

    def numbers(self, key: str, number: int) -> list[Any]:
        """Return the fields for the number of images and the seed."""
        fields = (("number", "Images each", number), ("seed", "Seed", 0))
        return [
            self.gr.Number(value, label=label, precision=0, min_width=120, elem_id=f"{key}-{name}")
            for name, label, value in fields
        ]

    def upload(self, key: str, label: str, height: int) -> Any:
        """Return a place for a picture from outside; a handler gets its path."""
        # Gradio would open the file, and fail without a word if it holds no picture.
        picture = raw(self.gr.Image, lambda payload: payload and payload.path)
        return picture(
            label=label,
            type="filepath",
            sources=["upload"],
            height=height,
            elem_id=key,
            elem_classes="small",
        )

    def line(self, key: str) -> Any:
        """Return the place for one line of text: the time, or what is wrong."""
        return self.gr.Markdown("Nothing yet.", elem_id=f"{key}-line", elem_classes="line")

    def gallery(self, key: str) -> Any:
        """Return a place for images."""
        return self.gr.Gallery(
            show_label=False,
            elem_id=f"{key}-images",
            elem_classes="small",
            format="png",
            object_fit="contain",
            columns=4,
            height="auto",
            interactive=False,
            buttons=["download", "fullscreen"],
        )

    def button(self, key: str, title: str) -> Any:
        """Return a button that begins."""
        return self.gr.Button(title, variant="primary", elem_id=f"{key}-go", scale=3)

    def buttons(self, key: str, title: str) -> tuple[Any, Any]:
        """Return a button that begins, and one that stops."""
        return self.button(key, title), self.gr.Button(
            "Stop", elem_id=f"{key}-stop", scale=1, min_width=80
        )

    def on(
        self,
        buttons: tuple[Any, Any | None],
        handler: Handler,
        inputs: list[Any],
        outputs: list[Any],
    ) -> None:
        """Let the buttons begin and stop a handler; the first of its outputs is a line of text.

        After the values of its inputs it takes a function that says whether it shall stop: it ends
        by itself. (If Gradio cancelled it, the page would be left as it is, or show errors.)
        """
        begin, stop = buttons
        stops, now = self.gr.State(Stops()), self.gr.Number(visible=False)

        def run(*values: Any) -> Iterator[Any]:
            *given, asked, begun = values
            return handler(*given, lambda: asked.at >= begun)

        guarded = told(self.gr, len(outputs), says=True)(run)
        begin.click(guarded, [*inputs, stops, now], outputs, js=NOW, **self.listen)
        if stop is not None:
            quick: dict[str, Any] = {"queue": False, "api_visibility": "private"}
            stop.click(Stops.ask, [stops, now], None, js=NOW, show_progress="hidden", **quick)

    def tiles(self, images: list[Any], width: int) -> Any:
        """Return images, paths or arrays of so many pixels in a row, for a gallery."""
        return self.gr.update(value=images, elem_classes=["small"] if width < _SMALL else [])


class Result:
    """Images as they form, their film, the time, and what can be taken away.

    Args:
        frame: of the tab.
        key: what ids on the page begin with.
    """

    def __init__(self, frame: Frame, key: str) -> None:
        gr, self.frame = frame.gr, frame
        self.line, self.images = frame.line(key), frame.gallery(key)
        gr.Markdown(f"Scale by scale: the first {pictures.FILMED}, if there are more")
        self.film = gr.Image(
            show_label=False,
            format="png",
            interactive=False,
            height=460,
            elem_id=f"{key}-film",
            buttons=["download", "fullscreen"],
        )
        self.sheet = gr.DownloadButton(
            "Download all in one PNG, with their settings",
            interactive=False,
            size="sm",
            elem_id=f"{key}-sheet",
        )
        with gr.Accordion("Settings, as every PNG remembers them", open=False):
            self.notes = gr.JSON(elem_id=f"{key}-notes", show_label=False)

    @property
    def outputs(self) -> list[Any]:
        """The components that `follow` updates."""
        return [self.line, self.images, self.film, self.sheet, self.notes]

    def follow(self, drawing: Iterator[Drawn]) -> Iterator[list[Any]]:
        """Yield what is to be seen, group by group."""
        gr, frame = self.frame.gr, self.frame
        for drawn in drawing:
            latest, film = drawn.frames[-1], pictures.shown(pictures.film(drawn.frames))
            if not drawn.finished:
                tiles = frame.tiles([*map(pictures.shown, latest)], latest.shape[-1])
                yield [drawn.line, tiles, film, gr.update(interactive=False), None]
                continue
            with TemporaryDirectory(dir=frame.folder) as folder:  # Gradio copies while we wait
                paths, sheet = pictures.save(drawn, Path(folder))
                ready = gr.update(value=sheet, interactive=True)
                yield [drawn.line, frame.tiles(paths, latest.shape[-1]), film, ready, drawn.notes]


def wanted(labels: list[int], number: int | None, seed: int | None, **more: Any) -> Wanted:
    """Return which images are drawn, from the page's fields.

    Raises:
        UserError: a field is empty.
    """
    if number is None or seed is None:
        empty = "number of images" if number is None else "seed"
        raise UserError(f"the {empty} is empty: give a whole number")
    return Wanted(labels, int(number), int(seed), **more)
