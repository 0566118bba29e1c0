"""Charts as numbers: the place of each line, mark and label of an inline SVG. The templates only draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 12, 46
NEAREST = 26  # pixels between labels of an axis


class Tick(NamedTuple):
    """A line of the grid at a pixel, and its label, which is empty if there is no room for one."""

    at: float
    label: str


class Mark(NamedTuple):
    """A measured point in pixels, its interval from `low` (below) to `high` (above), its text, and its number of calls."""

    x: float
    y: float
    low: float
    high: float
    says: str
    calls: str


class Line(NamedTuple):
    """A curve: its name, its colour and shape by number, its path, an area around it, and marks."""

    name: str
    number: int
    path: str
    area: str = ""
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: of the vertical axis.
        below: title of the horizontal axis.
        says: the chart in words, for people who do not see it.
        x, y: the grid.
        lines: the curves.
        level: a horizontal line of reference, and its label.
    """

    title: str
    below: str
    says: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    lines: tuple[Line, ...]
    level: Tick | None = None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


class Point(NamedTuple):
    """A value y at x with its interval, and its text."""

    x: float
    y: float
    low: float
    high: float
    says: str


def with_intervals(
    title: str,
    below: str,
    named: Sequence[tuple[str, int, Sequence[Point]]],
    says: str,
    level: tuple[float, str] | None = None,
) -> Chart:
    """Measured points with their intervals, such as quality against network calls; both axes are logarithmic.

    Args:
        title, below, says: as for `Chart`.
        named: curves, each (name, number, points).
        level: a line of reference, and its label.
    """
    points = [point for _, _, each in named for point in each]
    calls = sorted({point.x for point in points})
    tops = [max(point.y, point.high) for point in points]
    least = min((point.y for point in points if point.y > 0), default=1.0)
    lows = [point.low for point in points if point.low > least / 3]
    across = _log(calls[0] / 1.15, calls[-1] * 1.15, LEFT, WIDTH - RIGHT)
    up = _log(min([least / 1.3, *lows]), max([*tops, least]) * 1.1, HEIGHT - BOTTOM, TOP)
    bottom = HEIGHT - BOTTOM
    lines = []
    for name, number, each in named:
        marks = tuple(
            Mark(across(p.x), up(p.y), min(up(p.low), bottom), up(p.high), p.says, f"{p.x:g}")
            for p in sorted(each, key=lambda p: p.x)
        )
        lines.append(Line(name, number, _path([(mark.x, mark.y) for mark in marks]), marks=marks))
    x = _apart(
        [Tick(across(value), f"{value:,.0f}") for value in calls], least=NEAREST if calls[-1] < 1000 else 2 * NEAREST
    )
    y = _apart([Tick(up(value), f"{value:g}") for value in _round(least / 3, max(tops))], TOP - 1, bottom + 1)
    said = Tick(up(level[0]), level[1]) if level and TOP <= up(level[0]) <= bottom else None
    return Chart(title, below, says, x, y, tuple(lines), said)


def over_shares(
    title: str,
    below: str,
    curves: Sequence[tuple[str, int, Sequence[float], Sequence[float]]],
    says: str,
    *,
    between: tuple[Sequence[float], Sequence[float]] | None = None,
    level: tuple[float, str] | None = None,
    shares: bool = False,
) -> Chart:
    """Curves over a share from 0 to 1; each is (name, number, xs, ys).

    Args:
        title, below, says: as for `Chart`.
        curves: the first one may have an area around it.
        between: lower and upper edge of that area, at the xs of the first curve.
        level: a line of reference, and its label.
        shares: whether the values are shares, too.
    """
    highest = max([1e-9, *(y for _, _, _, ys in curves for y in ys), *(between[1] if between else ())])
    top = 1.0 if shares else highest * 1.05
    across, up = _linear(0, 1, LEFT, WIDTH - RIGHT), _linear(0, top, HEIGHT - BOTTOM, TOP)
    lines = []
    for index, (name, number, xs, ys) in enumerate(curves):
        area = ""
        if between and not index:
            edge = [*zip(xs, between[1], strict=True), *reversed([*zip(xs, between[0], strict=True)])]
            area = _path([(across(x), up(y)) for x, y in edge]) + "Z"
        lines.append(Line(name, number, _path([(across(x), up(y)) for x, y in zip(xs, ys, strict=True)]), area))
    x = tuple(Tick(across(k / 4), f"{k * 25} %") for k in range(5))
    values = [k / 4 for k in range(5)] if shares else _even(top)
    y = tuple(Tick(up(value), f"{value:.0%}" if shares else f"{value:g}") for value in values)
    said = Tick(up(level[0]), level[1]) if level and level[0] <= top else None
    return Chart(title, below, says, x, y, tuple(lines), said)


def over_numbers(
    title: str, below: str, curves: Sequence[tuple[str, int, Sequence[float], Sequence[float]]], says: str
) -> Chart:
    """Curves of positive values on a logarithmic axis over numbers; each is (name, number, xs, ys)."""
    xs = [x for _, _, each, _ in curves for x in each]
    ys = [y for _, _, _, each in curves for y in each if y > 0]
    across = _linear(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    up = _log(min(ys, default=1.0) / 1.15, max(ys, default=1.0) * 1.15, HEIGHT - BOTTOM, TOP)
    lines = [
        Line(name, number, _path([(across(x), up(y)) for x, y in zip(each, values, strict=True) if y > 0]))
        for name, number, each, values in curves
    ]
    x = _apart([Tick(across(value), f"{value:,.0f}") for value in _even(max(xs)) if min(xs) <= value], least=60)
    y = [Tick(up(value), f"{value:g}") for value in _round(min(ys, default=1.0) / 2, 2 * max(ys, default=1.0))]
    return Chart(title, below, says, x, _apart(y, TOP - 1, HEIGHT - BOTTOM + 1), tuple(lines))


class Bar(NamedTuple):
    """A bar in pixels, its colour by number, and its text."""

    x: float
    y: float
    width: float
    height: float
    number: int
    says: str


@dataclass(frozen=True)
class Bars:
    """Bars beside each other, and the names of their colours."""

    title: str
    below: str
    says: str
    y: tuple[Tick, ...]
    bars: tuple[Bar, ...]
    names: tuple[tuple[str, int], ...]
    width: int = 2 * WIDTH
    height: int = 240
    left: int = LEFT
    right: int = 2 * WIDTH - RIGHT
    top: int = TOP
    bottom: int = 240 - 34


def in_parts(title: str, below: str, says: str, values: Sequence[tuple[str, str, float]]) -> Bars:
    """Bars of (name, part, value) in their order; each part has a colour."""
    parts = list(dict.fromkeys(part for _, part, _ in values))
    blank = Bars(title, below, says, (), (), tuple((part, index + 1) for index, part in enumerate(parts)))
    top = max([1e-9, *(value for *_, value in values)]) * 1.05
    up = _linear(0, top, blank.bottom, blank.top)
    room = (blank.right - blank.left) / max(1, len(values))
    bars = tuple(
        Bar(
            round(blank.left + room * place + room * 0.1, 1), up(value), round(room * 0.8, 1),
            round(blank.bottom - up(value), 1), parts.index(part) + 1, f"{name}: {value:.3g}",
        )
        for place, (name, part, value) in enumerate(values)
    )  # fmt: skip
    y = tuple(Tick(up(value), f"{value:g}") for value in _even(top))
    return Bars(title, below, says, y, bars, blank.names)


class Reach(NamedTuple):
    """An interval on a small strip of 200 by 22 pixels. The middle is "no difference", the right is better.

    Attributes:
        low, value, high: in pixels.
        margin: half the width of the band that counts as kept.
    """

    low: float
    value: float
    high: float
    margin: float


REACH = 3.2  # times the margin that a strip shows to each side


def reach(value: float, low: float, high: float, margin: float, sign: float) -> Reach:
    """The place of a difference in its strip.

    Args:
        value, low, high: the difference and its interval.
        margin: a difference up to this counts as kept.
        sign: 1 where more is better, else −1.
    """
    size = margin if margin > 0 else max(abs(low), abs(high), 1e-300) / REACH

    def at(difference: float) -> float:
        place = sign * difference / size / REACH if math.isfinite(difference) else math.copysign(2, sign * difference)
        return round(100 + 98 * max(-1.0, min(1.0, place)), 1)

    ends = sorted((at(low), at(high)))
    return Reach(ends[0], at(value), ends[1], round(98 / REACH, 1))


Place = Callable[[float], float]


def _linear(low: float, high: float, start: float, end: float) -> Place:
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _log(low: float, high: float, start: float, end: float) -> Place:
    """A logarithmic axis. Values at or below zero have no logarithm and are placed far outside."""
    inner = _linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(max(value, low / 100)))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points) if points else ""


def _round(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [k * 10.0**power for power in range(first, last + 1) for k in (1, 2, 5) if low <= k * 10.0**power <= high]


def _even(top: float) -> list[float]:
    """From 0 to `top` in about four even steps."""
    size = 10.0 ** math.floor(math.log10(top / 4))
    step = next(k * size for k in (1, 2, 2.5, 5, 10) if top / (k * size) <= 5)
    return [round(k * step, 12) for k in range(int(top / step + 1e-9) + 1)]


def _apart(ticks: Sequence[Tick], low: float = -1e9, high: float = 1e9, least: float = NEAREST) -> tuple[Tick, ...]:
    """The ticks from `low` to `high`, without labels that would touch the label before them."""
    kept: list[Tick] = []
    last = -math.inf
    for tick in sorted(ticks, key=lambda tick: tick.at):
        if low <= tick.at <= high:
            kept.append(tick if tick.at - last >= least else Tick(tick.at, ""))
            last = tick.at if tick.at - last >= least else last
    return tuple(kept)
