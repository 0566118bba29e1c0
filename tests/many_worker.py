"""Commands of fewstep in each of several processes, as `torchrun` would start them: folder/commands.json says which.

What each process printed, how each command ended and which parts it made are left in `folder`. A command under "killed" is
begun by one process alone and killed in its second part, before all go on with it; one under "failing" fails in the second
process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import diffusers  # noqa: F401 - before the processes are forked
import lm_eval.tasks  # noqa: F401
import transformers  # noqa: F401

from fewstep.cli import main as fewstep
from fewstep.core import parts

SECONDS = 500  # on a machine that does other things as well
Sharing = Callable[..., None]


@contextmanager
def watched(see: Callable[[int], None]) -> Iterator[None]:
    """Tells `see` the number of each part before it is made."""
    share = parts.share

    def seen(missing: Any, sizes: Any, make: Callable[[int], bool], *args: Any, **options: Any) -> None:
        def first(k: int) -> bool:
            see(k)
            return make(k)

        share(missing, sizes, first, *args, **options)

    parts.share = seen
    try:
        yield
    finally:
        parts.share = share


def run(command: list[str], see: Callable[[int], None] = lambda k: None) -> tuple[Any, str, str, list[int]]:
    """The exit code, or the traceback, of a command; what it printed; the parts it made."""
    out, err, code, made = io.StringIO(), io.StringIO(), 0, list[int]()
    sys.argv = ["fewstep", *command]
    with redirect_stdout(out), redirect_stderr(err), watched(lambda k: (see(k), made.append(k))[0]):
        try:
            fewstep()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
    return code, out.getvalue(), err.getvalue(), made


def killed(command: list[str]) -> None:
    """Begins a command and kills it in its second part."""
    child = os.fork()
    if child == 0:
        os.environ["WORLD_SIZE"], parts.KEPT_AFTER = "1", 0.0
        begun: list[int] = []

        def see(k: int) -> None:
            begun.append(k)
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        run(command, see)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def fail(k: int) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("out of power")


def main(folder: Path) -> None:
    signal.alarm(SECONDS)
    os.chdir(folder)
    datasets.config.HF_DATASETS_CACHE = folder / "hf"  # both begin with none
    asked = json.loads((folder / "commands.json").read_text())
    if os.environ["RANK"] == "0":
        for command in asked["killed"]:
            killed(command)
    ended = [run(command) for command in asked["killed"] + asked["commands"]]
    ended += [run(command, fail) for command in asked["failing"]]
    (folder / f"ended-{os.environ['RANK']}.json").write_text(json.dumps(ended))
