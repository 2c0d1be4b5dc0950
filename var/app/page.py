"""The page: its tabs, its looks, its limits, and how it is served. Asks nobody on the internet."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import var
from var.app import tabs
from var.app.frame import Frame
from var.app.service import Service
from var.devices import precision_name
from var.errors import UserError

_CSS = """
.small img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
.grid-wrap { min-height: 7rem !important; overflow-y: visible !important;
  max-height: none !important; }
.line { font-size: 1.05rem; min-height: 1.7rem; }
"""


@dataclass(frozen=True)
class Limits:
    """What one page takes on.

    Attributes:
        queue: requests that may wait; more are turned away.
        concurrency: requests under way; several take turns on the device.
        upload_mb: size of an uploaded file.
        megapixels: size of the picture in it.
    """

    queue: int = 8
    concurrency: int = 1
    upload_mb: float = 10
    megapixels: float = 24


def keep_private(folder: Path, host: str) -> None:
    """Tell Gradio, before it is imported, to report to nobody, and where to put files.

    Args:
        folder: for uploads and what is shown, which may be deleted when the page is gone.
        host: of the page, which is asked whether it is there, and not by way of a proxy.
    """
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = f"{others},localhost,127.0.0.1,{host}".strip(",")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)


def build(service: Service, folder: Path, limits: Limits) -> Any:
    """Return the page, a `gradio.Blocks`.

    Args:
        service: answers.
        folder: for files on their way.
        limits: of requests.

    Raises:
        UserError: none of the models makes images, or the first one cannot be loaded.
    """
    import gradio as gr

    if not service.shelf.generators:
        raise UserError("models: none of them makes images, they are tokenizers alone")
    frame = Frame(
        gr=gr,
        service=service,
        model=service.shelf.generators[0],
        folder=folder,
        listen={
            "concurrency_id": "device",
            "concurrency_limit": limits.concurrency,
            "api_visibility": "private",
            "show_progress": "minimal",
        },
        megapixels=limits.megapixels,
    )
    shelf = service.shelf
    # Files of results and uploads: looked through every ten minutes, gone after an hour.
    with gr.Blocks(title="var", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        where = f"{shelf.device}, {precision_name(shelf.dtype)}"
        gr.Markdown(f"### var {var.__version__}: images, coarse to fine · {where}")
        for title, lay_out in (
            ("Sample", tabs.sample),
            ("Compare", tabs.compare),
            ("Edit", tabs.edit),
            ("Reconstruct", tabs.reconstruct),
        ):
            with gr.Tab(title, id=title.lower()):
                lay_out(frame)
    page.queue(max_size=limits.queue, api_open=False)
    return page


def serve(page: Any, *, host: str, port: int, share: bool, browse: bool, limits: Limits) -> str:
    """Open the page to visitors, and return its address; who calls this waits, and closes it.

    Raises:
        UserError: the port is taken, or the host is none of this machine.
    """
    import gradio as gr

    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=browse,
            max_file_size=int(limits.upload_mb * 2**20),
            theme=_theme(gr),
            css=_CSS,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        with suppress(Exception):
            page.close()
        raise UserError(
            f"host={host} port={port}: cannot be opened, perhaps another program has it: "
            f"say port={port + 1}"
        ) from error
    return public or local


def _theme(gr: Any) -> Any:
    """Return how the page looks: fonts of the visitor's own system, none are fetched."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=sans, font_mono=mono)
