"""Processes that begin at once: forked from one that has imported what the tests import, and has computed nothing.

A fresh interpreter takes seconds to import what a network needs, and one that has computed must not be forked: it has
threads. So one is set aside when all tests are collected, and forks itself whenever it is asked to.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import pickle
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from subprocess import DEVNULL, PIPE
from typing import IO

import torch

SECONDS = 500  # after which a process is ended, on a machine that does other things as well
_asking: list[socket.socket] = []  # one end of the line to the process that was set aside


class Forked:
    """A function in a process of its own, as `subprocess.Popen` has a program; what it reads and writes is text.

    It begins in the folder and with the environment of whoever asks. Leaving the block ends it.
    """

    def __init__(
        self, function: Callable[..., object], *args: object, stdout: int | None = None, stderr: int | None = None
    ) -> None:
        self.returncode: int | None = None
        self.stdout, out = _stream(stdout, 1)
        self.stderr, err = _stream(stderr, 2)
        self._told, tell = socket.socketpair()
        work = pickle.dumps((function, args, os.getcwd(), dict(os.environ)))
        socket.send_fds(_asking[0], [work], [out, err, tell.fileno()])
        tell.close()
        os.close(out)
        os.close(err)
        self.pid = self._number()

    def _number(self) -> int:
        said = self._told.recv(8)
        assert said, "whoever forks is gone"
        return int.from_bytes(said, "little", signed=True)

    def poll(self) -> int | None:
        """What `wait` gives, or None while it runs."""
        return self.wait() if self.returncode is not None or select.select([self._told], [], [], 0)[0] else None

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it."""
        if self.returncode is None:
            self.returncode = self._number()
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def _stream(asked: int | None, own: int) -> tuple[IO[str] | None, int]:
    """What is read of a stream, and what the process writes into."""
    if asked == PIPE:
        reading, writing = os.pipe()
        return open(reading), writing
    return None, os.open(os.devnull, os.O_WRONLY) if asked == DEVNULL else os.dup(own)


def set_aside() -> None:
    """Sets a process aside, which ends with this one."""
    asking, asked = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the thread in which pytest-xdist waits stays behind
        child = os.fork()
    if child:
        asked.close()
        _asking[:] = [asking]
        atexit.register(asking.close)
        return
    asking.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for those who work
    torch.set_num_threads(1)
    gc.freeze()  # else each process looks through all that was imported
    minders = set[int]()
    try:
        while (message := socket.recv_fds(asked, 1 << 18, 3))[0]:
            minders -= {minder for minder in minders if os.waitpid(minder, os.WNOHANG)[0]}
            if not (minder := os.fork()):
                asked.close()
                _mind(*message[:2])
            minders.add(minder)
            for each in message[1]:
                os.close(each)
    finally:
        os._exit(0)  # whatever fails here, no second pytest goes on


def _mind(work: bytes, streams: list[int]) -> None:
    """Begins a process and tells when it has begun and how it ended."""
    out, err, tell = streams
    if not (child := os.fork()):
        os.close(tell)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os._exit(_begin(work))
    os.close(out)
    os.close(err)
    os.write(tell, child.to_bytes(8, "little", signed=True))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(tell, code.to_bytes(8, "little", signed=True))
    os._exit(0)


def _begin(work: bytes) -> int:
    """Runs a function as a fresh interpreter would; returns the exit code."""
    signal.alarm(SECONDS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: SIM115
    logging.getLogger().handlers.clear()  # pytest's own
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    try:
        function, args, folder, environment = pickle.loads(work)  # by pytest itself, on a line that nobody else holds
        os.environ.clear()
        os.environ.update(environment | {"OMP_NUM_THREADS": "1"})  # accelerate sets torch's threads by it
        os.chdir(folder)
        function(*args)
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1
