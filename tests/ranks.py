"""Processes of one run, forked after the slow imports: python ranks.py WORKER PROCESSES FOLDER.

WORKER is a module beside this one, whose `main(folder)` each process runs. They find each other as those of `torchrun` and
`accelerate launch` do. Who waits for the others for ever is ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

from conftest import tiny

SECONDS = 150  # a run takes three on a quiet machine

if __name__ == "__main__":
    main, processes, folder = import_module(sys.argv[1]).main, int(sys.argv[2]), Path(sys.argv[3])
    tiny()
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
            main(folder)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
