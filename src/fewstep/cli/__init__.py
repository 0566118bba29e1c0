"""The command line: every command is a typed function; its parameters are the flags."""

from __future__ import annotations

import logging
import os
import sys

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


def main() -> None:
    """Entry point: what a user did wrong ends in one sentence and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "accelerate", "datasets", "diffusers", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="fewstep", description=DESCRIPTION)
    except (ValueError, FloatingPointError) as error:
        _stop(str(error))
    except BrokenPipeError:  # the reader left, as `head` does; nothing more can be said on that pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _stop(f"{error.strerror or error}{where}; make room or choose another folder. Nothing half-written was left.")
    except KeyboardInterrupt:
        _stop("interrupted; a run goes on from its last saved state with --resume")


def _stop(sentence: str) -> None:
    print(f"fewstep: {sentence}", file=sys.stderr)
    sys.exit(2)
