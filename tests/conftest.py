from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import ranks
import torch
from accelerate.state import AcceleratorState
from forked import SECONDS, Forked, set_aside

from fewstep.cli import main
from fewstep.diffusion.data import Images, save_images
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.formats.folder import save
from fewstep.diffusion.model import Model
from fewstep.diffusion.recipes import new_denoiser
from fewstep.diffusion.walk import Heun

os.environ["FEWSTEP_CACHE"] = ""  # what one test computes no other finds
gc.disable()  # of what is imported nothing is garbage, and there is much of it
os.fsync = lambda descriptor: None  # a disk takes milliseconds to be sure, and no test outlives a power cut
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores Ctrl-C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The dearest fixture first: what begins late is divided between pytest's workers, and each would make it."""
    items.sort(key=lambda item: item.path.name != "test_many.py")


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: a look for garbage passes it over. It took a quarter of all time."""
    gc.freeze()
    gc.enable()
    set_aside()


def fresh() -> None:
    """The same seed, and no memory of another test's precision: accelerate keeps it for the whole process."""
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    fresh()


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


def launch(worker: str, folder: Path, processes: int) -> None:
    """Runs `main(folder)` of a worker beside this file in several processes that find each other."""
    with Forked(ranks.main, worker, processes, folder) as family:
        assert family.wait() == 0


def _run(words: list[str]) -> None:
    sys.argv = ["fewstep", *words]
    main()


def begun(command: str, **streams: int) -> Forked:
    """A command of fewstep in a process of its own."""
    return Forked(_run, command.split(), **streams)


def fewstep(monkeypatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fewstep", *command.split()])
    main()


@pytest.fixture
def stock_here(monkeypatch) -> None:
    stock_samples_here(monkeypatch)


def stock_samples_here(monkeypatch) -> None:
    """Stock diffusers samples what was exported in this process: a fresh one takes seconds to import the libraries."""
    from fewstep.diffusion.formats import verifying

    def run(script, given, seconds):
        with warnings.catch_warnings():  # of the libraries alone, and nobody hears the fresh process's either
            warnings.simplefilter("ignore")
            script.main(*given)

    monkeypatch.setattr(verifying, "run", run)


@pytest.fixture(scope="session")
def _apart() -> Iterator[Callable[..., None]]:
    """Runs scripts in one process of plain diffusers, since each of its own would import the libraries again."""
    command = [sys.executable, "-I", Path(__file__).with_name("stock_worker.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as process:

        def run(script: str | Path, *given: str) -> None:
            print(json.dumps([os.getcwd(), str(script), *given]), file=process.stdin)
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                process.kill()
            assert json.loads(process.stdout.readline()) is None

        yield run


@pytest.fixture
def stock_apart(_apart, monkeypatch) -> Callable[..., None]:
    """Stock diffusers samples what was exported in a process that nothing of ours is in, but not a fresh one each time."""
    from fewstep.diffusion.formats import verifying

    monkeypatch.setattr(verifying, "run", lambda script, given, seconds: _apart(script.__file__, *given))
    return _apart


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline of each family, made once."""
    from tiny_pipelines import tiny_pipeline

    return cache(lambda family: tiny_pipeline(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="session")
def _teacher_and_data(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("made")
    save(Model(tiny(size=28), Heun()), made / "teacher")
    save_images(noise_images(40, size=28), made / "data.npz")
    return made


@pytest.fixture
def place(_teacher_and_data, tmp_path, monkeypatch) -> Path:
    """A folder with a tiny teacher and data that fits it."""
    shutil.copytree(_teacher_and_data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
