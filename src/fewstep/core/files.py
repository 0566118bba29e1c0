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

OURS = ".fewstep"  # ending of a workshop's name: .NAME.RANDOM.fewstep stands beside NAME while NAME is written
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of a write that may name no file

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
            os.replace(path, workshop / "old")  # _leave puts it back if the next line fails
        os.replace(new, path)
    _sync(path.parent)


@contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """Makes a hidden folder beside `path` for its new content: locked while this process lives, removed after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=OURS, dir=path.parent))
    with open(workshop / "unlocked", "wb") as lock:
        try:
            with suppress(OSError):  # without file locks, files of a killed process are not cleared away
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
    """Removes half-written files that killed processes left in `folder`: those of `name`, or all.

    Files of a process that still writes are locked, on whatever machine it runs, and stay.
    """
    for workshop in [*folder.iterdir()] if folder.is_dir() else ():
        target = workshop.name[1 : -len(OURS)].rpartition(".")[0]
        if not (workshop.name.startswith(".") and workshop.name.endswith(OURS)) or name not in (None, target):
            continue
        with suppress(OSError), open(workshop / "locked", "rb+") as lock:  # held, not locked yet, or gone by now
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _leave(workshop, folder / target)


def _leave(workshop: Path, path: Path) -> None:
    """Removes a workshop. If nothing stands at `path`, the old content in the workshop is moved back first."""
    if (workshop / "old").exists() and not path.exists():
        os.replace(workshop / "old", path)
    shutil.rmtree(workshop, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process inside the block; the system releases the lock if the process dies.

    A missing folder is created. The same process may enter the block again. Where files cannot be locked (some network
    drives), no process is kept out.

    Raises:
        ValueError: another process holds the lock, or the folder is not writable.
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
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def _take(lock: IO[bytes], folder: Path) -> None:
    """Locks the file. Raises ValueError, which names the owner, if another process holds the lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
            raise FileNotFoundError  # its last owner has just removed it
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
    """Checks that files can be written in `folder`, before hours of work, and removes what killed processes left in it.

    A missing folder is not created, so a later failure leaves nothing behind.

    Raises:
        ValueError: the folder is not writable, or could not be created.
    """
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=there):
            pass
        clear(folder)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder with --out") from error


def writable_file(path: Path) -> None:
    """Checks that a file can be written at `path`; see `writable`.

    Raises:
        ValueError: `path` is not writable, or is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file with --out")
    writable(path.parent)


def check_room(path: Path, needed: int) -> None:
    """Raises ValueError if the disk of `path` has fewer than `needed` bytes free."""
    room = shutil.disk_usage(next(place for place in path.absolute().parents if place.exists())).free
    if needed > room:
        raise ValueError(
            f"the table takes {needed / 2**30:,.1f} GiB, but {room / 2**30:,.1f} GiB are free at {path}; choose another "
            "place with --out"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns write errors of safetensors and torch at `path` into OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # the part of torch that writes files
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
