"""The command line: every command is a typed function; its parameters are the flags."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn

import tyro

from .images import demo, export, sample
from .language import train_text
from .measuring import dial, measure, settle
from .proxy import proxy
from .text import calibrate, decode
from .text_measuring import evaluate, settle_text
from .training import train, tune

IMAGES = (demo, train, tune, sample, measure, dial, settle, export)
TEXT = (train_text, decode, calibrate, settle_text, evaluate, proxy)
COMMANDS = {command.__name__.replace("_", "-"): command for command in (*IMAGES, *TEXT)}
DESCRIPTION = "Turn the diffusion model you already have into a few-step generator, and see exactly what that cost."
LIBRARIES = ("DATASETS", "DIFFUSERS", "HF_HUB", "TRANSFORMERS")


def main() -> None:
    """Entry point: what a user did wrong ends in one sentence and exit code 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fewstep").setLevel(logging.INFO)
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(version("fewstep"))
        return
    commands = {name: _alone_on_the_screen(command) for name, command in COMMANDS.items()}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="fewstep", description=DESCRIPTION)
    except (ValueError, FloatingPointError) as error:
        _stop(str(error))
    except BrokenPipeError:  # the reader left, as `head` does; nothing more can be said on that pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:  # a sentence of ours
            _stop(str(error))
        where = f" ({error.filename})" if error.filename else ""
        _stop(f"{error.strerror}{where}; make room or choose another folder. Nothing half-written was left.")
    except KeyboardInterrupt as stop:  # what was saved on the way says so itself
        _stop(str(stop) or "interrupted; nothing half-written was left", 128 + getattr(stop, "signal", signal.SIGINT))


def _alone_on_the_screen(command: Callable[..., None]) -> Callable[..., None]:
    """The command without what other libraries report while they load: what goes wrong our errors say in one sentence.

    Who wants to hear a library sets its variable, as in TRANSFORMERS_VERBOSITY=info. Downloads keep their bars.
    """

    @wraps(command)
    def run(*args: object, **options: object) -> None:
        for library in LIBRARIES:
            os.environ.setdefault(f"{library}_VERBOSITY", "critical")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
        from transformers.utils.logging import disable_progress_bar

        downloads = not are_progress_bars_disabled()
        disable_progress_bar()  # those of the hub, too
        if downloads:
            enable_progress_bars()
        command(*args, **options)

    return run


def _stop(sentence: str, code: int = 2) -> NoReturn:
    print(f"fewstep: {sentence}", file=sys.stderr)
    sys.exit(code)
