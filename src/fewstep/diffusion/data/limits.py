"""Bounds for files that expand without end. A user who means it raises them, by a variable of the environment."""

from __future__ import annotations

import os

MAX_PIXELS = "FEWSTEP_MAX_PIXELS"
MAX_GIB = "FEWSTEP_MAX_GIB"
PIXELS = 89_478_485  # of one picture: Pillow's own bound
EXPANSION = 200  # real data sets stay below: dSprites, nearly all black, grows 115 times
ALWAYS = 2**28  # bytes that any data set may take
IN_MEMORY = 2**30  # bytes of decoded pictures that are kept there


def max_pixels() -> int:
    """How many pixels one picture may have."""
    return int(_setting(MAX_PIXELS) or PIXELS)


def check_file(size: int) -> None:
    """Raises ValueError where one file, a picture or what describes pictures, has more than four bytes a pixel."""
    if size > 4 * max_pixels():
        raise ValueError(f"{size:,} bytes are more than four for each of {max_pixels():,} pixels; set {MAX_PIXELS} higher")


def check_growth(what: str, needed: int, on_disk: int) -> None:
    """Compares the bytes that `what` is going to take with those that it takes on the disk.

    Raises:
        ValueError: it grows beyond what pictures do, and beyond what the user allows.
    """
    if needed > max(ALWAYS, EXPANSION * on_disk, (_setting(MAX_GIB) or 0) * 2**30):
        raise ValueError(
            f"{what} takes {on_disk / 2**20:,.1f} MiB on the disk and would become {needed / 2**30:,.1f} GiB; "
            f"if that is meant, set {MAX_GIB} to the GiB that it may take"
        )


def check_memory(what: str, needed: int, otherwise: str) -> None:
    """Raises ValueError where decoded pictures are too many to be kept in memory; it says what to do `otherwise`."""
    allowed = _setting(MAX_GIB)
    if needed > (IN_MEMORY if allowed is None else allowed * 2**30):
        raise ValueError(
            f"{what} would take {needed / 2**30:,.1f} GiB in memory; {otherwise}, or set {MAX_GIB} to what it may take"
        )


def _setting(name: str) -> float | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"the variable {name} must be a positive number, not {text!r}")
    return value
