"""Runs the commands of the documentation, each in a process of its own that has all imported.

    python -m tests.docs.server SOCKET

`client` is at the other end. Processes are forked: torch is imported once, and each command begins,
and ends, as if it were the first and only one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from hydra._internal.hydra import Hydra

from tests.docs import small, stand_ins
from var.nn.linear import bfloat16_is_faster, packed_is_faster

# Imported before any command is run.
_EARLY = ("bench", "calibrate", "compare", "encode", "evaluate", "sample", "train")


def main(path: str) -> None:
    """Serve until killed."""
    for name in _EARLY:
        import_module(f"var.scripts.{name}")
    import_module("matplotlib.pyplot")
    small.install(pytest.MonkeyPatch())
    for dtype in (torch.float32, torch.bfloat16):  # measured once, not in every process
        packed_is_faster(dtype)
    bfloat16_is_faster()
    # It would compose the whole config, to see that none of ours chooses a mode.
    Hydra.get_mode = lambda *_, **__: None
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    argv = received(connection)
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    # At once: to take all apart that was imported would take longer than most commands.
    os._exit(ended(lambda: stand_ins.run(argv)))


def received(connection: socket.socket) -> list[str]:
    """Become the process that a client would be; return its command line."""
    text, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 16)
    job = json.loads(text)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    return list(job["argv"])


def ended(work: Callable[[], None]) -> int:
    """Return the status with which a process ends that does this work."""
    status: object = 0
    try:
        work()
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1


if __name__ == "__main__":
    main(sys.argv[1])
