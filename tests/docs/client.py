"""A command that blocks of the documentation find on their PATH: `server` runs it, we wait.

It has to start quickly, and so imports next to nothing.
"""

import json
import os
import socket
import sys


def main(address: str, *argv: str) -> int:
    """Return the status with which a command ends."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        job = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}
        socket.send_fds(server, [json.dumps(job).encode() + b"\n"], [0, 1, 2])
        return int(server.makefile().readline() or 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
