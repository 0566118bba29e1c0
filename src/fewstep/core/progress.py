"""How far long work is and how long it still takes: a bar in a terminal, else a line in the log now and then."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)
T = TypeVar("T")
SHORT = 10.0  # seconds
EVERY = 30.0  # seconds from one line of a log to the next
_screen = Lock()  # held by the work that is shown
_parts: list[_Part] = []  # the parts of the shown work that are being done, the innermost last


@contextmanager
def progress(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """Yields a function to call with the amount that was done since its last call; `total` is the whole, in any unit.

    A terminal shows a bar with the time left, a log gets a line every thirty seconds. Work of less than ten seconds shows
    nothing. Work inside other work shows nothing of its own. Nothing is shown unless INFO is logged: the command line logs
    it, and users of the library choose.
    """
    if not logger.isEnabledFor(logging.INFO) or not _screen.acquire(blocking=False):
        yield _parts[-1].shared(total) if _parts else lambda more: None
        return
    meter = _Meter(title, total)
    try:
        yield meter
    finally:
        if meter.bar:
            meter.bar.stop()
        _screen.release()


@contextmanager
def as_part(tell: Callable[[float], None], size: float) -> Iterator[None]:
    """Inside the block a part of longer work is done: `tell` gets the progress inside it, and the rest at its end."""
    part = _Part(tell, size)
    _parts.append(part)
    try:
        yield
    finally:
        _parts.remove(part)
    if part.left > 0:
        part(part.left)


def track(items: Collection[T], title: str) -> Iterator[T]:
    """The items, which take about the same time each; see `progress`."""
    with progress(title, len(items)) as done:
        for item in items:
            yield item
            done(1)


class _Part:
    """Reports progress within a part, at most its `size` in all."""

    def __init__(self, tell: Callable[[float], None], size: float) -> None:
        self.tell, self.left, self.size = tell, size, size

    def __call__(self, more: float) -> None:
        more = min(more, self.left)
        self.left -= more
        self.tell(more)

    def shared(self, total: float) -> Callable[[float], None]:
        """The function to call for work of `total` inside this part."""
        return lambda more: self(self.size * more / total)


class _Meter:
    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self.start = self.told = monotonic()
        self.bar: Progress | None = None

    def __call__(self, more: float) -> None:
        self.done += more
        now = monotonic()
        spent = now - self.start
        if not self.done:
            return
        left = spent * max(self.total / self.done - 1, 0)
        shown = str(timedelta(seconds=round(left)))
        if not sys.stderr.isatty():
            if now - self.told >= EVERY and self.done > self.total:  # the total was an estimate
                logger.info("%s: %.0f seconds, longer than expected", self.title, spent)
                self.told = now
            elif now - self.told >= EVERY:
                logger.info("%s: %.0f %%, %s left", self.title, 100 * self.done / self.total, shown)
                self.told = now
            return
        if self.bar is None and spent > 1 and spent + left > SHORT:
            self.bar = _bar(self.title, self.total)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.done, left=shown)


def _bar(title: str, total: float) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]} left")
    # rich must not take over stdout that goes to a file
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    bar.add_task(title, total=total, left="")
    bar.start()
    return bar
