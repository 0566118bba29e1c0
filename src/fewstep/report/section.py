"""The parts of a report: a section for each result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Found(NamedTuple):
    """A result that a command left.

    Attributes:
        file: of the result.
        kind: such as "dial" or "ledger"; see `KINDS` in finding.py.
        content: of the file.
        source: the folder or file, as the user named it.
        pictures: how many of each setting fit on the page.
    """

    file: Path
    kind: str
    content: dict[str, Any]
    source: str
    pictures: int = 12


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        source: the folder or file of the result, as the user named it.
        says: findings, a sentence each; the first two also stand in the table of contents.
        template: the file in templates/ that shows `body`.
        body: figures, pictures and charts.
        receipt: how the result came about.
    """

    title: str
    source: str
    says: tuple[str, ...]
    template: str
    body: object
    receipt: Receipt


@dataclass(frozen=True)
class Receipt:
    """How a result came about: the command, facts in the order in which they are read, and versions."""

    command: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = field(default=())


FACTS = {  # entries that a receipt shows first, with their titles
    "started": "Begun",
    "wall_seconds": "Seconds",
    "seed": "First seed",
    "n": "Samples",
    "nfe_per_sample": "Network calls a sample",
    "calls": "Network calls",
    "device": "Computed on",
    "precision": "Precision",
    "machine": "Machine",
    "git_commit": "Commit",
}
LONGEST = 300  # characters of another entry


def receipt_in(content: Mapping[str, Any], shown: Sequence[str] = ()) -> Receipt:
    """The receipt in a result.

    Args:
        content: of the file.
        shown: entries that the section itself shows, which the receipt leaves out.
    """
    words = [str(word) for word in content.get("command") or ()]
    versions = content.get("versions")
    facts = [(title, _told(content[name])) for name, title in FACTS.items() if content.get(name) is not None]
    known = {*FACTS, *shown, "command", "versions"}
    others = [(name, _told(value)) for name, value in content.items() if name not in known and value not in (None, [], {})]
    return Receipt(
        shlex.join(["fewstep", *words[1:]]) if words else "",
        tuple(facts),
        tuple((str(name), str(found)) for name, found in versions.items() if found) if isinstance(versions, dict) else (),
        tuple((name.replace("_", " "), told) for name, told in others),
    )


def _told(value: object) -> str:
    """A value in words: a setting as name(key value, …), a list with commas."""
    if isinstance(value, dict):
        name = value.get("name")
        inner = ", ".join(f"{key} {_told(each)}" for key, each in value.items() if key != "name" and each is not None)
        told = f"{name} ({inner})" if name and inner else str(name) if name else inner
    elif isinstance(value, list):
        told = ", ".join(map(_told, value))
    elif isinstance(value, bool):
        told = "yes" if value else "no"
    elif isinstance(value, float):
        told = f"{value:,g}"
    elif isinstance(value, int):
        told = f"{value:,}"
    else:
        told = str(value)
    return told if len(told) <= LONGEST else told[:LONGEST] + " …"


class Figure(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Figure:
        """A figure from an `Estimate` in JSON."""
        return cls(float(found["value"]), float(found["low"]), float(found["high"]))

    def __str__(self) -> str:
        """As 4.6 ± 0.8, or with both ends where these lie unevenly; all with as many decimals as the value."""
        up, down = self.high - self.value, self.value - self.low
        digits = max(_digits(self.value), min(_digits(up), 4)) if abs(self.value) < up else _digits(self.value)
        if min(_size(self.value), _size(up)) < TINY or not up + down < float("inf"):
            value, low, high, reach = (short(each) for each in (*self, up))
        else:
            value, low, high, reach = (_minus(f"{each:,.{digits}f}") for each in (*self, up))
        even = abs(up - down) <= 0.02 * max(up, down, 1e-12)
        return f"{value} ± {reach}" if even else f"{value} ({low} to {high})"


TINY = 0.0005  # smaller values are written with a power of ten


def short(value: float) -> str:
    """Two or three figures: 0.0034, 0.46, 4.61, 71.9, 1,240; 4.8·10⁻⁵ below a two-thousandth."""
    if not abs(value) < float("inf"):
        return "∞" if value > 0 else "−∞" if value < 0 else "unknown"
    if _size(value) < TINY:
        mantissa, power = f"{value:.1e}".split("e")
        return _minus(mantissa) + "·10" + str(int(power)).translate(SUPERSCRIPTS)
    return _minus(f"{value:,.{_digits(value)}f}")


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _size(value: float) -> float:
    """The absolute value; 1 for 0, which needs no power of ten."""
    return abs(value) or 1.0


def _digits(value: float) -> int:
    """Decimals that show two or three figures."""
    size = _size(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3 if size >= 0.01 else 4


def _minus(number: str) -> str:
    return number.replace("-", "−")


def percent(share: float) -> str:
    """A share as 92.6 %, whole where it is."""
    return f"{100 * share:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"
