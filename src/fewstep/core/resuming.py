"""What all runs share that can be stopped and resumed, each in a folder of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from .files import alone_in
from .interrupts import Interrupt, interrupts
from .source import read_json

logger = logging.getLogger(__name__)

LOOKS = "watch.jsonl"  # in the folder of a run: a look at it on each line


@contextmanager
def running(out: Path, *, main: bool = True) -> Iterator[Interrupt]:
    """Inside the block no other run gets the folder `out`, and the first Ctrl-C or SIGTERM is only noted.

    Args:
        out: of the run.
        main: whether this process writes; only the one that writes locks the folder.

    Raises:
        ValueError: another process has the folder, or it is not writable.
    """
    with interrupts() as interrupt, alone_in(out) if main else nullcontext():
        yield interrupt


def check_another(out: Path, *, saved: bool, resume: bool) -> None:
    """Raises ValueError if a run is `saved` in `out` and the new one does not resume it."""
    if saved and not resume:
        raise ValueError(f"there already is a run in {out}; go on with --resume or choose another folder")


def goes_on(out: Path, *, saved: bool, resume: bool) -> bool:
    """Whether a run in `out` goes on from a saved state. If none is saved, it starts anew, even with `resume`.

    Raises:
        ValueError: see `check_another`.
    """
    check_another(out, saved=saved, resume=resume)
    if resume and not saved:
        logger.info("nothing is saved in %s yet, so the run starts", out)
    return saved


def check_same(
    before: dict[str, Any], now: dict[str, Any], *, free: Collection[str] = (), changing: Collection[str] = ()
) -> dict[str, Any]:
    """Checks that a resumed run has the settings it began with; both are as `plain` gives them.

    Args:
        before, now: settings at the start of the run, and now.
        free: names that may differ.
        changing: names that may differ and whose old values are returned.

    Returns:
        What has changed of `changing`: name -> the value before.

    Raises:
        ValueError: names all other differences, as one option may decide several settings.
    """
    different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if refused := [name for name in different if name not in free and name not in changing]:
        begun, goes_on = (", ".join(f"{name} = {each.get(name)}" for name in refused) for each in (before, now))
        raise ValueError(
            f"this run began with {begun} and would go on with {goes_on}; resume it with the options it began with"
        )
    return {name: before.get(name) for name in different if name in changing}


def is_complete(out: Path, results: Collection[Path], **told: object) -> bool:
    """Whether all `results` of a run exist and the receipt in `out` has the entries `told`."""
    written = out / "receipt.json"
    if not written.exists() or not all(result.exists() for result in results):
        return False
    facts = read_json(written, "")
    return all(facts.get(name) == value for name, value in told.items())


def looks_in(out: Path) -> list[dict[str, Any]]:
    """The looks at the run in `out`, the first one first. Lines that are no look, as a half-written one, are left out."""
    found, file = [], out / LOOKS
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        try:
            look = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(look, dict) and isinstance(look.get("images"), int | float):
            found.append(look)
    return found
