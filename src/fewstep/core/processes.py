"""The processes of one command, as `torchrun` and `accelerate launch` start them, and how they wait for each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from .interrupts import Interrupted

T = TypeVar("T")
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun, accelerate and MPI
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
PATIENCE = timedelta(days=7)  # a part may take hours, and the others wait for it
OURS: dict[str, type[Exception]] = {"ValueError": ValueError, "FloatingPointError": FloatingPointError}

_inside: list[Processes] = []  # the blocks of `together` that are open


class Elsewhere(Exception):  # noqa: N818 - nothing is wrong with this process
    """Some process of the command failed, and the main process reports the error. `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("the main process reports the error")
        self.code = code


@dataclass(frozen=True)
class Said:
    """An error that one process tells all others."""

    kind: str
    sentence: str
    details: tuple[Any, ...] = ()

    @classmethod
    def of(cls, error: BaseException) -> Said:
        if isinstance(error, Interrupted):
            return cls("Interrupted", str(error), (error.signal,))
        if isinstance(error, OSError) and error.strerror is not None:
            return cls("OSError", str(error), (error.errno, error.strerror, error.filename))
        return cls(next((name for name, kind in OURS.items() if isinstance(error, kind)), type(error).__name__), str(error))

    def again(self) -> BaseException:
        """The error as it is raised in another process."""
        if self.kind == "Interrupted":
            return Interrupted(self.sentence, *self.details)
        if self.kind == "OSError" and self.details:
            return OSError(*self.details)
        if self.kind in OURS:
            return OURS[self.kind](self.sentence)
        return RuntimeError(f"another process of this command ended with {self.kind}: {self.sentence}")

    @property
    def code(self) -> int:
        return 128 + self.details[0] if self.kind == "Interrupted" else 2


class _MetError(Exception):
    """An error that a process told the others at a meeting."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.sentence)
        self.said = said


@dataclass(frozen=True)
class Processes:
    """The processes of this command: there are `count`, and this one is number `index`."""

    index: int = 0
    count: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes results and prints."""
        return self.index == 0

    def meet(self, value: T | None = None) -> Any:
        """Waits for all processes; returns the main process's `value`, which must be small. If one failed, all fail."""
        return value if self.count == 1 else self._tell(None, value)

    def _tell(self, error: Said | None, value: object = None) -> Any:
        from torch.distributed import all_gather_object

        told: list[Any] = [None] * self.count
        try:
            all_gather_object(told, (error, value if self.is_main else None), group=self.group)
        except RuntimeError as lost:  # a connection that is closed
            raise _MetError(Said("ValueError", "another process of this command has ended; start them again")) from lost
        found = next((said for said, _ in told if said is not None), None)
        if found is not None:
            raise _MetError(found)
        return told[0][1]


def launched() -> int:
    """How many processes this command has, as its environment says."""
    return max(_number(COUNTS), 1)


def speaks() -> bool:
    """Whether this process is the one that prints: the only one, or the first."""
    return launched() == 1 or _number(RANKS) == 0


@contextmanager
def silent() -> Iterator[None]:
    """Inside the block nothing is printed, only errors are logged, and libraries that it imports show no progress bar."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
            yield
    finally:
        logging.disable(before)


@contextmanager
def together() -> Iterator[Processes]:
    """Inside the block the processes of this command work together: they wait for each other, and end together.

    If one process fails, the main process raises its error, which the user then sees once; the others raise `Elsewhere`.
    A nested block is the same block. With one process the block does nothing.
    """
    if _inside:
        yield _inside[-1]
        return
    here = _joined() if launched() > 1 else Processes()
    _inside.append(here)
    try:
        yield here
        here.meet()  # nobody leaves while another may still fail
    except _MetError as error:
        raise (error.said.again() if here.is_main else Elsewhere(error.said.code)) from error
    except (Exception, Interrupted) as error:
        if here.count > 1:
            _end(here, error)
        raise
    finally:
        _inside.remove(here)


def _end(here: Processes, error: BaseException) -> None:
    """Tells the other processes of an error. Raises `Elsewhere` if the main process reports it."""
    try:
        here._tell(Said.of(error))
    except _MetError as met:
        expected = isinstance(error, (ValueError, OSError, FloatingPointError, Interrupted))
        if expected and not here.is_main:
            raise Elsewhere(met.said.code) from error


@cache
def _joined() -> Processes:
    """All processes, with a connection of their own: that of training has a timeout of minutes."""
    from accelerate import PartialState
    from torch.distributed import is_initialized, new_group

    from .device import best_device

    state = PartialState(cpu=best_device().type == "cpu")
    if state.num_processes == 1 or not is_initialized():
        return Processes()
    return Processes(state.process_index, state.num_processes, new_group(backend="gloo", timeout=PATIENCE))


def _number(names: tuple[str, ...]) -> int:
    """The value of the first of these environment variables that is a number; 0 if none is."""
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdecimal()), 0)
