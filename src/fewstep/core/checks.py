"""Checks of single numbers before anything is loaded. The errors name the flag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def at_least(least: int, **flags: float | Sequence[float] | None) -> None:
    """Raises ValueError if one of the `flags` is below `least`, not finite, or 2^62 or more. None is not checked."""
    for name, given in flags.items():
        for value in given if isinstance(given, Sequence) else [given]:
            if value is not None and not (value >= least and math.isfinite(value)):
                raise ValueError(f"{flag(name)} starts at {least}, got {value:g}")
            if value is not None and value >= 2**62:  # leaves room to count up in 64 bits
                raise ValueError(f"{flag(name)} must be below 2^62, got {value:g}")


def positive(**flags: float | None) -> None:
    """Raises ValueError if one of the `flags` is not a finite number above 0. None is not checked."""
    for name, value in flags.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{flag(name)} must be above 0, got {value:g}")


def flag(name: str) -> str:
    """The command line's flag for the parameter `name`."""
    return "--" + name.replace("_", "-")


def given(**settings: Any) -> dict[str, Any]:
    """The settings that are not None."""
    return {name: value for name, value in settings.items() if value is not None}
