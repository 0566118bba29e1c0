"""Files and folders that are complete or not there, folders of one process alone, and training states that hold no code."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

OURS = ".fewstep"  # how the name of a workshop ends: .NAME.RANDOM.fewstep stands beside NAME while that is being written
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a write says that knows no file's name

_held: set[Path] = set()  # folders that this process has for itself


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that takes its place at `path` once all of it is on the disk.

    Raises:
        OSError: it could not be written (no space, no permission); an older file at `path` is untouched.
    """
    with _workshop(path) as workshop:
        with open(workshop / "new", "wb") as file, disk_errors(path):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(workshop / "new", path)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that takes its place at `path` once everything in it is on the disk.

    Raises:
        OSError: it could not be written (no space, no permission); an older folder at `path` is untouched.
    """
    clear(path.parent, path.name)
    with _workshop(path) as workshop:
        new = workshop / "new"
        new.mkdir()
        with disk_errors(path):
            yield new
        for item in (new, *new.rglob("*")):
            _sync(item)
        if path.exists():
            os.replace(path, workshop / "old")  # comes back if the next line fails
        os.replace(new, path)
    _sync(path.parent)


@contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for what will stand there: made for this block, locked while this process lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=OURS, dir=path.parent))
    with open(workshop / "unlocked", "wb") as lock:
        try:
            with suppress(OSError):  # where files cannot be locked, nothing of a killed process is cleared away
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.replace(workshop / "unlocked", workshop / "locked")
            yield workshop
        except OSError as error:
            inside = error.errno in FULL if error.filename is None else str(error.filename).startswith(str(workshop))
            if not inside:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            _leave(workshop, path)


def clear(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes left half-written in `folder`, of the file or folder `name` or of all.

    A process that still writes holds its lock, wherever it runs, and is left alone.
    """
    for workshop in [*folder.iterdir()] if folder.is_dir() else ():
        target = workshop.name[1 : -len(OURS)].rpartition(".")[0]
        if not (workshop.name.startswith(".") and workshop.name.endswith(OURS)) or name not in (None, target):
            continue
        with suppress(OSError), open(workshop / "locked", "rb+") as lock:  # held, not locked yet, or gone by now
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _leave(workshop, folder / target)


def _leave(workshop: Path, path: Path) -> None:
    """Removes a workshop; what stood at `path` and was put aside in it comes back unless something new stands there."""
    if (workshop / "old").exists() and not path.exists():
        os.replace(workshop / "old", path)
    shutil.rmtree(workshop, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside the block no other process gets this `folder`; see `writable`. The system frees it if this process dies.

    The same process may enter it again. Where files cannot be locked (some network drives), nobody is kept out.

    Raises:
        ValueError: another process has it, or it takes no files.
    """
    made = not folder.exists()
    place = folder.resolve()
    if place in _held:
        yield
        return
    writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab+") as lock:
        _take(lock, folder)
        _held.add(place)
        try:
            yield
        finally:
            _held.remove(place)
            (folder / LOCK).unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # there is something in it
                    folder.rmdir()


def _take(lock: IO[bytes], folder: Path) -> None:
    """Locks the file, or says who has locked it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
            raise FileNotFoundError  # whoever had it has just removed it
    except (BlockingIOError, FileNotFoundError) as error:
        lock.seek(0)
        owner = lock.read().decode(errors="replace") or "another process"
        raise ValueError(
            f"{owner} is writing into {folder}; wait until it ends or choose another folder with --out"
        ) from error
    except OSError:
        return
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}".encode())
    lock.flush()


def writable(folder: Path) -> None:
    """Proves that `folder` takes files, before hours of work, and removes what killed processes left in it.

    It is not made: what fails later leaves nothing behind.

    Raises:
        ValueError: it takes none, or could not be made.
    """
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=there):
            pass
        clear(folder)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error


def writable_file(path: Path) -> None:
    """Proves that a file can be written at `path`; see `writable`.

    Raises:
        ValueError: it cannot, or a folder stands there.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file with --out")
    writable(path.parent)


def check_room(path: Path, needed: int) -> None:
    """Raises ValueError where the disk that will have `path` has no room for so many bytes."""
    room = shutil.disk_usage(next(place for place in path.absolute().parents if place.exists())).free
    if needed > room:
        raise ValueError(
            f"the table takes {needed / 2**30:,.1f} GiB, and there is room for {room / 2**30:,.1f} at {path}; choose "
            "another place with --out"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What safetensors and torch say when `path` cannot be written, as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # where torch.save writes
            raise
        cause = error.__context__ if isinstance(error.__context__, OSError) else OSError(errno.EIO, os.strerror(errno.EIO))
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (tensors, numbers, strings, lists, dicts) atomically.

    Raises:
        OSError: it could not be written; an older state is untouched.
    """
    with atomic_file(Path(path)) as file:
        torch.save(state, file)


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads what `save_state` wrote. Only plain data is accepted, so no code in the file can run.

    Raises:
        ValueError: the file is missing, cut short, or holds anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no saved state at {path}; start without resuming")
    strange = f"{path} is not a saved state of fewstep, or it is damaged; start the run anew in another folder"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors alike; torch's own message advises to run the code
        raise ValueError(strange) from error
    if not isinstance(state, dict):
        raise ValueError(strange)
    return state
