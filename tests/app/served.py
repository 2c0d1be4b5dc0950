"""`var-app` in a process of its own, which says whom it calls."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import var

# What the process connects to, or looks up, is noted, unless it is this machine.
WATCHED = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[0] if event == "socket.getaddrinfo" else args[1]
        host = host[0] if isinstance(host, tuple) else host
        if host not in ("127.0.0.1", "localhost", "::1", b"127.0.0.1", None):
            print("CALLED", host, file=sys.stderr)
sys.addaudithook(watch)
from var.scripts.app import main
main()
"""


class Served(NamedTuple):
    """A page that answers.

    Attributes:
        address: where.
        log: what its process says.
    """

    address: str
    log: Path


@contextmanager
def served(folder: Path, *overrides: str) -> Iterator[Served]:
    """Serve the page from a folder of its own, which is to be empty again in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, places = folder / "log.txt", folder / "files"
    places.mkdir()
    environment = {**os.environ, "TMPDIR": str(places), "GRADIO_ANALYTICS_ENABLED": "True"}
    environment["http_proxy"] = environment["https_proxy"] = "http://127.0.0.1:9"  # nobody is there
    environment["PYTHONPATH"] = str(Path(var.__file__).parents[1])
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, f"port={port}", "device=cpu", *overrides],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        while address not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Served(address, log)
    finally:
        process.terminate()
        status = process.wait(60)
    assert status == 0 and not [*places.iterdir()], log.read_text()
