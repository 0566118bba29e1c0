"""A run that is killed three times, also while it writes, beside one that is not.

The one that is killed reads its data from a table, the other has them in memory.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from conftest import noise_images, tiny
from tune_worker import main as tune

from fewstep.diffusion.data import Table, make_table, save_images


def start(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        tune(folder, Table(folder.parent / "table") if folder.name == "killed" else None)
        os._exit(0)
    return child


def kill(folder: Path, later: float) -> None:
    """Starts a run and kills it `later` seconds after it saved a state."""
    state = folder / "state.pt"
    before = state.stat().st_mtime_ns if state.exists() else 0
    child = start(folder)
    while not state.exists() or state.stat().st_mtime_ns == before:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.001)
    time.sleep(later)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"


def main(root: Path) -> None:
    whole, killed = root / "whole", root / "killed"
    tiny()
    for folder in (whole, killed):
        folder.mkdir()
    save_images(noise_images(), whole.parent / "data.npz")
    make_table(whole.parent / "data.npz", whole.parent / "table", channels=1, size=8)
    for later in (0.0, 0.002, 0.004):
        kill(killed, later)
    for folder in (whole, killed):
        assert os.waitpid(start(folder), 0)[1] == 0
