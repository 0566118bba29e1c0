"""What can be wrong with a number alone is said before anything is loaded, by the name of its flag."""

from __future__ import annotations

import math
from collections.abc import Sequence


def at_least(least: int, **flags: float | Sequence[float] | None) -> None:
    """Raises ValueError where one of the `flags` that were given is below `least`, not finite, or beyond counting."""
    for name, given in flags.items():
        for value in given if isinstance(given, Sequence) else [given]:
            if value is not None and not (value >= least and math.isfinite(value)):
                raise ValueError(f"{flag(name)} starts at {least}, got {value:g}")
            if value is not None and value >= 2**62:  # room to count on from it in 64 bits
                raise ValueError(f"{flag(name)} ends below 2^62, got {value:g}")


def positive(**flags: float | None) -> None:
    """Raises ValueError where one of the `flags` that were given is not a finite number above 0."""
    for name, value in flags.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{flag(name)} must be above 0, got {value:g}")


def flag(name: str) -> str:
    """How the parameter `name` is called on the command line."""
    return "--" + name.replace("_", "-")
