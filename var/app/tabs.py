"""The tabs of the page: what they show, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from var.app import pictures
from var.app.frame import Frame, Result, wanted
from var.app.job import Drawn
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
        *chosen, number, seed = values
        setting, labels = panel.read(chosen)
        yield from result.follow(service.draw(setting, wanted(labels, number, seed)))

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
        *chosen, number, seed = values
        one, labels = a.read(chosen[: len(a.inputs)])
        two, _ = b.read(chosen[len(a.inputs) :])
        before: tuple[Drawn | None, ...] = (None, None)
        for found in service.compare(one, two, wanted(labels, number, seed)):
            now = found.a, found.b
            pairs = zip(now, before, strict=True)
            yield [found.line, *(part for pair in pairs for part in _side(frame, *pair))]
            before = now

    frame.on(buttons, handler, [*a.inputs, *b.inputs, *fields], [line, *seen])


def edit(frame: Frame) -> None:
    """Lay out the tab that begins with a given image."""
    gr, service = frame.gr, frame.service
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
        picture, kind, mask, paste, scale, groups, *chosen, number, seed = values
        setting, labels = panel.read(chosen)
        more = {"paste": paste} if kind in _PASTING else {"groups": groups}
        made, words = pictures.edit(
            kind,
            picture and picture["background"],
            picture and pictures.painted(picture["layers"]),
            mask and pictures.upload(mask, "mask", megapixels=frame.megapixels),
            more | ({"scale": scale} if kind == "expand" else {}),
        )
        asked = wanted(labels, number, seed, edit=made, edited=words)
        yield from result.follow(service.draw(setting, asked))

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
                buttons = frame.buttons("again", "Reconstruct")
        with gr.Column(scale=3, min_width=480):
            line, images = frame.line("again"), frame.gallery("again")

    def handler(name: str, path: str | None) -> Iterator[Any]:
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

    frame.on(buttons, handler, [model, picture], [line, images])


def _edit_controls(frame: Frame) -> list[Any]:
    """Return picture, kind, mask, and the settings of edits; each kind shows its own."""
    gr = frame.gr
    picture = gr.ImageEditor(
        label="Picture: upload it, then paint the area",
        type="pil",
        sources=["upload"],
        brush=gr.Brush(colors=["#ff3ba7"], color_mode="fixed"),
        layers=False,
        transforms=(),
        height=360,
        elem_id="edit-picture",
        elem_classes="small",
    )
    kind = gr.Radio(_KINDS, value="inpaint", label="What to do", elem_id="edit-kind")
    mask = frame.upload("edit-mask", "Or a mask, white on black", 150)
    paste = gr.Checkbox(True, label="Keep the picture's own pixels", elem_id="edit-paste")
    scale = gr.Slider(0.1, 1, 0.5, label="Share of the frame that it takes", visible=False)
    groups = gr.Number(2, label="Groups that stay: scales, or tokens", precision=0, visible=False)

    def unfold(chosen: str) -> list[Any]:
        shown = chosen in _AREAS, chosen in _PASTING, chosen == "expand", chosen == "vary"
        return [gr.update(visible=each) for each in shown]

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    kind.change(unfold, kind, [mask, paste, scale, groups], show_progress="hidden", **quick)
    return [picture, kind, mask, paste, scale, groups]


def _side(frame: Frame, drawn: Drawn | None, before: Drawn | None) -> tuple[Any, Any]:
    """Return what a side of a comparison shows; as it is if nothing has changed."""
    if drawn is None or drawn is before:
        return frame.gr.skip(), frame.gr.skip()
    images = [*map(pictures.shown, drawn.frames[-1])]
    return drawn.line, frame.tiles(images, drawn.frames[-1].shape[-1])
