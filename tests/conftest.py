from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from fewstep.cli import main
from fewstep.diffusion.data import Images, save_images
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.formats.folder import save
from fewstep.diffusion.model import Model
from fewstep.diffusion.recipes import new_denoiser
from fewstep.diffusion.walk import Heun


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """The same seed for each test, and no memory of another's precision: accelerate keeps it for the whole process."""
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny(parametrisation: str = "vp", channels: int = 1, size: int = 8, classes: int = 0) -> Denoiser:
    """A stock UNet2DModel of a few thousand parameters, with random weights that are the same every time."""
    torch.manual_seed(0)
    return new_denoiser(channels, size, widths=(8, 16), parametrisation=parametrisation, classes=classes).eval()


def noise_images(n: int = 32, channels: int = 1, size: int = 8, labels: bool = False) -> Images:
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 3, (n,), generator=rng) if labels else None)


@pytest.fixture
def vp() -> Denoiser:
    return tiny("vp")


@pytest.fixture
def edm() -> Denoiser:
    return tiny("edm")


@pytest.fixture
def images() -> Images:
    return noise_images()


def launch(worker: Path, folder: Path, processes: int) -> None:
    """Runs `worker folder` in several processes that find each other, as `torchrun` and `accelerate launch` start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen([sys.executable, worker, folder], env=os.environ | found | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    assert [process.wait() for process in started] == [0] * processes


def fewstep(monkeypatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fewstep", *command.split()])
    main()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny teacher and data that fits it."""
    save(Model(tiny(size=28), Heun()), tmp_path / "teacher")
    save_images(noise_images(40, size=28), tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path
