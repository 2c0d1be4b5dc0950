"""The tabs of the page: what they show, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from var.app import pictures
from var.app.controls import LABELS
from var.app.frame import Frame, Result, wanted
from var.app.job import Drawn
from var.app.panel import told
from var.app.parts import raw
from var.errors import UserError

_KINDS = [
    ("make the area anew", "inpaint"),
    ("keep only the area", "outpaint"),
    ("expand", "expand"),
    ("vary", "vary"),
]
# Settings of edits, and those that have them.
_AREAS, _PASTING = ("inpaint", "outpaint"), ("inpaint", "outpaint", "expand")


def sample(frame: Frame) -> None:
    """Lay out the tab that draws images and shows how they form."""
    gr, service = frame.gr, frame.service
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            panel = frame.panel("sample")
            with gr.Row():
                fields = frame.numbers("sample", 1)
            with gr.Row():
                buttons = frame.buttons("sample", "Draw")
            panel.options()
        with gr.Column(scale=3, min_width=480):
            result = Result(frame, "sample")

    def handler(*values: Any) -> Iterator[Any]:
        *chosen, number, seed, stopped = values
        setting, labels = panel.read(chosen)
        yield from result.follow(service.draw(setting, wanted(labels, number, seed), stopped))

    frame.on(buttons, handler, [*panel.inputs, *fields], result.outputs)


def compare(frame: Frame) -> None:
    """Lay out the tab that draws the same seeds with two settings."""
    gr, service = frame.gr, frame.service
    with gr.Row():
        common = gr.Column(scale=2, min_width=300)
        with gr.Column(scale=1, min_width=300), gr.Row():
            fields = frame.numbers("compare", 1)
        with gr.Column(scale=1, min_width=200):
            buttons = frame.buttons("compare", "Compare")
    sides, seen = [], []
    with gr.Row():
        for key, place in (("a", common), ("b", None)):
            with gr.Column(min_width=360):
                gr.Markdown(f"### {key.upper()}")
                sides.append(frame.panel(key, place=place, chooses=place is not None))
                sides[-1].options()
    line = frame.line("compare")
    with gr.Row():
        for key in ("a", "b"):
            with gr.Column(min_width=360):
                seen += [frame.line(key), frame.gallery(key)]
    a, b = sides

    def handler(*values: Any) -> Iterator[Any]:
        *chosen, number, seed, stopped = values
        one, labels = a.read(chosen[: len(a.inputs)])
        two, _ = b.read(chosen[len(a.inputs) :])
        before: tuple[Drawn | None, ...] = (None, None)
        for found in service.compare(one, two, wanted(labels, number, seed), stopped):
            now = found.a, found.b
            pairs = zip(now, before, strict=True)
            yield [found.line, *(part for pair in pairs for part in _side(frame, *pair))]
            before = now

    frame.on(buttons, handler, [*a.inputs, *b.inputs, *fields], [line, *seen])


def edit(frame: Frame) -> None:
    """Lay out the tab that begins with a given image."""
    gr, service = frame.gr, frame.service
    most: dict[str, Any] = {"megapixels": frame.megapixels}
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            given = _edit_controls(frame)
            panel = frame.panel("edit", classes=[-1])
            with gr.Row():
                fields = frame.numbers("edit", 4)
            with gr.Row():
                buttons = frame.buttons("edit", "Edit")
            panel.options()
        with gr.Column(scale=3, min_width=480):
            result = Result(frame, "edit")

    def handler(*values: Any) -> Iterator[Any]:
        picture, kind, layers, mask, paste, scale, groups, *chosen, number, seed, stopped = values
        setting, labels = panel.read(chosen)
        more = {"paste": paste} if kind in _PASTING else {"groups": groups}
        made, words = pictures.edit(
            kind,
            picture and pictures.upload(picture, **most),
            pictures.painted(layers, **most),
            mask and pictures.upload(mask, "mask", **most),
            more | ({"scale": scale} if kind == "expand" else {}),
        )
        asked = wanted(labels, number, seed, edit=made, edited=words)
        yield from result.follow(service.draw(setting, asked, stopped))

    def show(path: str | None) -> Iterator[Any]:
        yield gr.skip(), path and pictures.shown(pictures.canvas(pictures.upload(path, **most)))

    picture, _, area, *_ = given
    quick = frame.listen | {"concurrency_id": "pictures", "concurrency_limit": 1}
    picture.change(told(gr, 2, says=True)(show), picture, [result.line, area], **quick)
    frame.on(buttons, handler, [*given, *panel.inputs, *fields], result.outputs)


def reconstruct(frame: Frame) -> None:
    """Lay out the tab that shows what a tokenizer makes of an image."""
    gr, service = frame.gr, frame.service
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            names = list(service.shelf.names)
            model = gr.Dropdown(names, value=frame.model, label="Model", elem_id="again-model")
            picture = frame.upload("again-picture", "Picture", 360)
            with gr.Row():
                button = frame.button("again", "Reconstruct")
        with gr.Column(scale=3, min_width=480):
            line, images = frame.line("again"), frame.gallery("again")

    def handler(name: str, path: str | None, _: Any) -> Iterator[Any]:
        if path is None:
            raise UserError("there is no picture yet: upload one, or drop it onto the frame")
        given = pictures.upload(path, megapixels=frame.megapixels)
        seen, steps, seconds = service.reconstruct(name, given)
        tiles = [(pictures.shown(seen), "given")]
        for step in steps:
            height, width = step.grid
            tiles.append((pictures.shown(step.image), f"{height} x {width}: {step.psnr:.1f} dB"))
        line = f"PSNR {steps[-1].psnr:.2f} dB · {seconds:.3f} s, decoded at every step"
        yield line, frame.tiles(tiles, seen.shape[-1])

    frame.on((button, None), handler, [model, picture], [line, images])


def _edit_controls(frame: Frame) -> list[Any]:
    """Return picture, kind, area, mask, and the settings of edits; each kind shows its own.

    What is painted on is a small copy: of a photograph the browser would make too large a file.
    """
    gr = frame.gr
    picture = frame.upload("edit-picture", "Picture", 200)
    kind = gr.Radio(_KINDS, value="inpaint", label="What to do", elem_id="edit-kind")
    area = raw(gr.ImageEditor, _layers, accept_blobs=None)(
        label="Paint the area",
        sources=(),
        brush=gr.Brush(colors=["#ff3ba7"], color_mode="fixed"),
        layers=False,
        transforms=(),
        height=360,
        elem_id="edit-area",
        elem_classes="small",
    )
    mask = frame.upload("edit-mask", "Or a mask, white on black", 150)
    paste = gr.Checkbox(True, label="Keep the picture's own pixels", elem_id="edit-paste")
    scale = raw(gr.Slider)(0.1, 1, 0.5, label=LABELS["scale"], visible=False)
    groups = gr.Number(2, label=LABELS["groups"], precision=0, visible=False)

    def unfold(chosen: str) -> list[Any]:
        painted = chosen in _AREAS
        shown = painted, painted, chosen in _PASTING, chosen == "expand", chosen == "vary"
        return [gr.update(visible=each) for each in shown]

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    kind.change(unfold, kind, [area, mask, paste, scale, groups], show_progress="hidden", **quick)
    return [picture, kind, area, mask, paste, scale, groups]


def _layers(payload: Any) -> list[str]:
    """Return the files of what was painted."""
    return [layer.path for layer in payload.layers] if payload else []


def _side(frame: Frame, drawn: Drawn | None, before: Drawn | None) -> tuple[Any, Any]:
    """Return what a side of a comparison shows; as it is if nothing has changed."""
    if drawn is None or drawn is before:
        return frame.gr.skip(), frame.gr.skip()
    images = [*map(pictures.shown, drawn.frames[-1])]
    return drawn.line, frame.tiles(images, drawn.frames[-1].shape[-1])
