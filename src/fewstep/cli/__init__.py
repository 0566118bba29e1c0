"""The command line: every command is a typed function; its parameters are the flags."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial, wraps
from importlib.util import find_spec
from traceback import walk_tb
from typing import NoReturn

import tyro

from ..core.extras import missing
from ..core.private import Misread, on_misread
from ..core.processes import Elsewhere, silent, speaks, together
from .images import check, demo, export, import_, play, push, sample
from .language import train_text
from .measuring import dial, forecast, ledger, measure, settle
from .misread import sentence
from .proxy import proxy
from .reporting import report
from .tables import encode, table
from .text import calibrate, decode, learn_rule
from .text_measuring import evaluate, ledger_text, settle_text
from .training import train, tune

IMAGES = (
    demo,
    check,
    train,
    tune,
    sample,
    measure,
    dial,
    ledger,
    settle,
    forecast,
    report,
    play,
    export,
    push,
    table,
    encode,
    import_,
)
TEXT = (train_text, decode, calibrate, learn_rule, settle_text, ledger_text, evaluate, proxy)
SHARED = (  # all processes share the work of these
    sample, measure, dial, ledger, settle, encode, decode, calibrate, learn_rule, settle_text, ledger_text, evaluate,
)  # fmt: skip
Work = Callable[[], None]
COMMANDS = {command.__name__.strip("_").replace("_", "-"): command for command in (*IMAGES, *TEXT)}
DESCRIPTION = "Turn the diffusion model you already have into a few-step generator, and see exactly what that cost."
LIBRARIES = ("DATASETS", "DIFFUSERS", "HF_HUB", "TRANSFORMERS")


def main() -> None:
    """Entry point: a user's error ends in one sentence and exit code 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fewstep").setLevel(logging.INFO)
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(version("fewstep"))
        return
    commands = {name: _alone_on_the_screen(command) for name, command in COMMANDS.items()}
    try:
        with ExitStack() as stack:
            if not speaks():
                stack.enter_context(silent())
            _parsed(commands)()
    except Elsewhere as error:
        time.sleep(1)  # the main process needs time to say it: a launcher ends all when the first one ends
        sys.exit(error.code)
    except (ValueError, FloatingPointError) as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        if not (said := missing(error)):
            raise
        _stop(said)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:  # a sentence of ours
            _stop(str(error))
        where = f" ({error.filename})" if error.filename else ""
        _stop(f"{error.strerror}{where}; make room or choose another folder. Nothing half-written was left.")
    except KeyboardInterrupt as stop:  # an Interrupted says what was saved
        _stop(str(stop) or "interrupted; nothing half-written was left", 128 + getattr(stop, "signal", signal.SIGINT))


def _parsed(commands: dict[str, Callable[..., Work]]) -> Work:
    """The work that the command line asks for, not yet begun.

    Raises:
        ValueError: a settings class refused its flags, or a word could not be read.
        SystemExit: tyro has printed the help.
    """

    def refuse(misread: Misread) -> NoReturn:
        if not speaks():
            raise Elsewhere(2)  # the main process says it
        raise _refusal() or ValueError(sentence(misread, sys.argv[1:], commands))

    if sys.argv[1:2] and sys.argv[1] not in commands:
        commands = {name: _in_a_line(command) for name, command in commands.items()}
    with on_misread(refuse):
        work: Work = tyro.extras.subcommand_cli_from_dict(commands, prog="fewstep", description=DESCRIPTION)
    return work


def _in_a_line(command: Callable[..., Work]) -> Callable[..., Work]:
    """The command with the first sentence of its docstring alone, for the list of all commands."""

    @wraps(command)
    def listed(*args: object, **options: object) -> Work:
        return command(*args, **options)

    about, dot, _ = " ".join((command.__doc__ or "").partition("\n\n")[0].split()).partition(". ")
    listed.__doc__ = about + dot.strip()
    return listed


def _refusal() -> ValueError | None:
    """The ValueError of a fewstep module at which tyro stopped; None if tyro itself refused a word."""
    error = sys.exc_info()[1]
    while error:
        module = str(list(walk_tb(error.__traceback__))[-1][0].f_globals["__name__"])
        if isinstance(error, ValueError) and module.startswith("fewstep."):
            return error
        error = error.__context__
    return None


def _alone_on_the_screen(command: Callable[..., None]) -> Callable[..., Work]:
    """The command with its call put off, and without the messages of other libraries: our errors say what is wrong.

    A variable such as TRANSFORMERS_VERBOSITY=info brings a library's messages back. Downloads keep their bars.
    """

    def run(*args: object, **options: object) -> None:
        for library in LIBRARIES:
            os.environ.setdefault(f"{library}_VERBOSITY", "critical")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        if find_spec("transformers"):
            _without_bars()
        with together() if command in SHARED else nullcontext():
            command(*args, **options)

    @wraps(command)
    def prepare(*args: object, **options: object) -> Work:
        return partial(run, *args, **options)

    return prepare


def _without_bars() -> None:
    """Turns off the progress bars of transformers; downloads keep theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils.logging import disable_progress_bar

    downloads = not are_progress_bars_disabled()
    disable_progress_bar()  # this also turns off the hub's
    if downloads:
        enable_progress_bars()


def _stop(said: str, code: int = 2) -> NoReturn:
    print(f"fewstep: {said}", file=sys.stderr)
    sys.exit(code)
