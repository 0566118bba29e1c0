"""Bounds on the memory that files may expand to. Environment variables raise them."""

from __future__ import annotations

import os

MAX_PIXELS = "FEWSTEP_MAX_PIXELS"
MAX_GIB = "FEWSTEP_MAX_GIB"
PIXELS = 89_478_485  # in one picture: Pillow's own bound
EXPANSION = 200  # bound on decoded over stored bytes; dSprites, which is nearly all black, has 115
ALWAYS = 2**28  # bytes that any data set may expand to
IN_MEMORY = 2**30  # bytes of decoded pictures kept in memory


def max_pixels() -> int:
    """The largest number of pixels in one picture."""
    return int(_setting(MAX_PIXELS) or PIXELS)


def check_file(size: int) -> None:
    """Raises ValueError if a picture or metadata file has more than four bytes for each of `max_pixels`."""
    if size > 4 * max_pixels():
        raise ValueError(f"{size:,} bytes are more than four for each of {max_pixels():,} pixels; set {MAX_PIXELS} higher")


def check_growth(what: str, needed: int, on_disk: int) -> None:
    """Checks that `what` does not expand too much from `on_disk` to `needed` bytes.

    Raises:
        ValueError: it expands beyond EXPANSION, ALWAYS and what the user allows.
    """
    if needed > max(ALWAYS, EXPANSION * on_disk, (_setting(MAX_GIB) or 0) * 2**30):
        raise ValueError(
            f"{what} takes {on_disk / 2**20:,.1f} MiB on the disk and would become {needed / 2**30:,.1f} GiB; "
            f"to allow it, set {MAX_GIB} to the GiB that it may take"
        )


def check_memory(what: str, needed: int, otherwise: str) -> None:
    """Raises ValueError if decoded pictures take too much memory; `otherwise` says what to do instead."""
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
