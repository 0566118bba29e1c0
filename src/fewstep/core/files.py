"""Files and folders that are either complete or not there, and training states that hold no code."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it there once all of it is on the disk.

    Raises:
        OSError: it could not be written (no space, no permission); an older file at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place once everything in it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        for item in temporary.rglob("*"):
            _sync(item)
        os.chmod(temporary, 0o755)
        with _aside(path):
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


@contextmanager
def _aside(path: Path) -> Iterator[None]:
    """What stands at `path` is out of the way inside the block and deleted after it, or put back if the block fails."""
    if not path.exists():
        yield
        return
    away = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, away / path.name)
    try:
        yield
    except BaseException:
        os.replace(away / path.name, path)
        away.rmdir()
        raise
    shutil.rmtree(away)


def writable(folder: Path) -> None:
    """Makes `folder` and proves that it takes files, before hours of work.

    Raises:
        ValueError: it does not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error


def writable_file(path: Path) -> None:
    """Proves that a file can be written at `path`, and makes the folders above it.

    Raises:
        ValueError: it cannot, or a folder stands there.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file with --out")
    writable(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (tensors, numbers, strings, lists, dicts) atomically."""
    with atomic_file(Path(path)) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch reports a full disk so
            raise OSError(f"could not write {path}: {error}") from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads what `save_state` wrote. Only plain data is accepted, so no code in the file can run.

    Raises:
        ValueError: the file is missing, cut short, or holds anything but plain data.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no saved state at {path}; start without resuming")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors alike mean: not our file
        raise ValueError(f"{path} is not a saved state of fewstep: {error}") from error
    return state
