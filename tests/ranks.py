"""Processes of one run, which find each other as those of `torchrun` and `accelerate launch` do."""

from __future__ import annotations

import os
import signal
import socket
from importlib import import_module
from pathlib import Path

SECONDS = 150  # a run takes one on a quiet machine; who waits for the others for ever is ended


def main(worker: str, processes: int, folder: Path) -> None:
    """Runs `main(folder)` of a module beside this one in each process."""
    work = import_module(worker).main
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            work(folder)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
