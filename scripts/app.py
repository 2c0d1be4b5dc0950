"""`var-app`: the page on which models are tried out, served by this machine to itself."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from var.app import page
from var.app.page import Limits
from var.app.service import Service
from var.app.shelf import Shelf
from var.devices import parse_device, parse_precision
from var.errors import UserError
from var.scripts.command import check_least, command

log = logging.getLogger("var.scripts.app")

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass
class Options:
    """The command's options and their types; `configs/app.yaml` says what they mean."""

    models: Any
    files: str | None
    device: str
    precision: str
    host: str
    port: int
    share: bool
    browser: bool
    loaded: int
    images: int
    queue: int
    concurrency: int
    upload_mb: float
    megapixels: float


@command("app")
def main(cfg: DictConfig) -> None:
    """Serve the page until the process is told to end."""
    merged = OmegaConf.merge(OmegaConf.structured(Options), cfg)
    options = cast(Options, OmegaConf.to_object(merged))
    check(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was uploaded goes too
    limits = Limits(options.queue, options.concurrency, options.upload_mb, options.megapixels)
    with TemporaryDirectory(prefix="var-app-") as folder, TemporaryDirectory() as results:
        page.keep_private(Path(folder), options.host)
        built = page.build(service(options), Path(results), limits)
        try:
            address = page.serve(
                built,
                host=options.host,
                port=options.port,
                share=options.share,
                browse=options.browser,
                limits=limits,
            )
            log.info("%s (Ctrl-C ends it)", address)
            Event().wait()
        finally:
            built.close(verbose=False)


def service(options: Options) -> Service:
    """Return what answers the page."""
    device = parse_device(options.device)
    names = options.models
    shelf = Shelf(
        [names] if isinstance(names, str) else names,
        device=device,
        dtype=parse_precision(options.precision, device),
        files=options.files,
        room=options.loaded,
    )
    return Service(shelf, options.images)


def check(options: Options) -> None:
    """Check what can be checked before anything is loaded, and warn of what lets strangers in.

    Raises:
        UserError: Gradio is missing, or a value makes no sense.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'var-toolkit[app]'")
    check_least(options, {"port": 1, "loaded": 1, "images": 1, "queue": 1, "concurrency": 1})
    for name in ("upload_mb", "megapixels"):
        if not getattr(options, name) > 0:
            raise UserError(f"{name} must be above 0, got {getattr(options, name)}")
    if options.share or options.host not in _LOCAL:
        who = "whoever has the link" if options.share else "whoever reaches this machine"
        log.warning("%s can use this page: there is no password", who)


if __name__ == "__main__":
    main()
