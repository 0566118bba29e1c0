"""Long work in parts, which all processes share; a command that was killed goes on with the missing parts.

A part is complete on the disk or not there, and nothing else records the progress. A part depends on the settings and never
on the number of processes, so the figures are the same with any number.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, Generic, TypeVar

from .files import alone_in, atomic_file
from .interrupts import Interrupt, Interrupted, interrupts
from .processes import Processes, together
from .progress import as_part, progress
from .receipt import plain, write_json
from .source import read_json

T = TypeVar("T")
MADE_OF = "made_of.json"  # what decides the parts
ENDED = "ended"  # this file beside the parts says that a process has failed or was stopped, so the others stop too
BATCHES = 8  # of texts in a part
STOPPED = "stopped; finished parts are in {}, and the same command goes on"
KEPT_AFTER = 5.0  # seconds; a single process that needs less keeps its parts in memory


@dataclass(frozen=True)
class Form(Generic[T]):
    """How a part lies on the disk: `write(file, part)` writes it atomically, `read(file)` reads it."""

    ending: str
    write: Callable[[Path, T], None]
    read: Callable[[Path], T]


def _write_part(file: Path, part: Any) -> None:
    with atomic_file(file) as content:
        content.write(json.dumps(plain(part)).encode())


# not by `read_json`, which has a limit of size: a part may hold thousands of long texts
AS_JSON: Form[Any] = Form(".json", _write_part, lambda file: json.loads(file.read_bytes()))


class Parts(Sequence[T]):
    """All parts of a work, in memory or on the disk; a part on the disk is read at each access."""

    def __init__(self, folder: Path, count: int, form: Form[T]) -> None:
        self.folder, self.length, self.form = folder, count, form
        self.made: dict[int, T] = {}  # those that are in memory

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: Any) -> Any:
        if not 0 <= k < self.length:
            raise IndexError(k)
        return self.made[k] if k in self.made else self.form.read(self.file(k))

    def file(self, k: int) -> Path:
        """Where part `k` lies."""
        return self.folder / f"{k:05}{self.form.ending}"

    def keep(self) -> None:
        """Writes what is in memory."""
        for k in sorted(self.made):
            self.form.write(self.file(k), self.made.pop(k))


def hidden(result: Path) -> Path:
    """The folder beside a result in which its parts lie until it is complete."""
    return result.with_name(f".{result.name}.parts")


@contextmanager
def in_parts(
    folder: Path | None,
    facts: Mapping[str, Any],
    sizes: Sequence[float],
    make: Callable[[int], T],
    form: Form[T] = AS_JSON,
    *,
    title: str,
    stays: bool = False,
) -> Iterator[Parts[T]]:
    """Yields all parts of a work. All processes make them together, and each process gets all of them.

    The folder stays until the block has ended without an error. A single process creates it with the first part that ends
    after five seconds.

    Args:
        folder: for the parts; None keeps them in memory, which several processes cannot share.
        facts: settings that decide the parts.
        sizes: of each part, in any unit, for the progress display.
        make: makes part k.
        form: how a part lies on the disk.
        title: name of the work in the progress display.
        stays: keep the folder after the block; the caller removes it once the whole result is written.

    Raises:
        ValueError: the folder holds parts of another work, another command writes there, or several processes have none.
        Interrupted: the work was told to stop; finished parts on the disk are kept.
    """
    with together() as here, ExitStack() as stack:
        if folder is None and here.count > 1:
            raise ValueError("several processes share their work in a folder beside the result; say where with --out")
        parts: Parts[T] = Parts(folder or Path(), len(sizes), form)
        start, kept = monotonic(), False

        def keep() -> None:
            nonlocal kept
            if folder is not None and not kept:
                stack.enter_context(begun(folder, {**facts, "sizes": list(sizes)}, here))
                kept = True
            if kept:
                parts.keep()

        def done(k: int) -> bool:
            parts.made[k] = make(k)
            if kept or (folder is not None and monotonic() - start > KEPT_AFTER and len(parts.made) < len(sizes)):
                keep()
            return kept

        if folder is not None and (here.count > 1 or (folder / MADE_OF).exists()):
            keep()
        missing = [k for k in range(len(sizes)) if not (kept and parts.file(k).exists())]
        here.meet()  # all see the same parts missing, before the first is written
        share(missing, sizes, done, here, folder=folder, title=title)
        here.meet()
        yield parts
        here.meet()  # all have read what they need
        if kept and here.is_main and not stays:
            shutil.rmtree(parts.folder)


@dataclass(frozen=True)
class Works:
    """Several works for one result, such as all questions of an evaluation; their parts stay until `end`.

    Attributes:
        folder: has a folder of parts for each work; None keeps the parts in memory.
        facts: settings that decide all parts.
        begun: title -> how many works of that title have begun.
    """

    folder: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    begun: Counter[str] = field(default_factory=Counter)

    def answers(self, title: str, asked: Sequence[object], batch: int, answer: Callable[[range], list[T]]) -> list[T]:
        """The answers to all of `asked`, in order; `answer(range)` gives those of a range, in values that JSON has."""
        self.begun[title] += 1
        folder = None if self.folder is None else self.folder / f"{title}-{self.begun[title]}"
        said = hashlib.sha256(json.dumps(list(asked), default=str).encode()).hexdigest()
        ranges = of_texts(len(asked), batch)
        facts = {**self.facts, "asked": said}
        made = in_parts(folder, facts, list(map(len, ranges)), lambda k: answer(ranges[k]), title=title, stays=True)
        try:
            with made as parts:
                return [each for part in parts for each in part]
        except Interrupted as stop:
            if self.folder is None or not self.folder.exists():
                raise
            raise Interrupted(STOPPED.format(self.folder), stop.signal) from stop  # those of the works before, too

    def end(self) -> None:
        """Removes the parts, once the whole result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def begun(folder: Path, facts: Mapping[str, Any], here: Processes, *, what: str = "what is kept") -> Iterator[None]:
    """Locks the folder for this command inside the block, and checks that its parts belong to these facts.

    Raises:
        ValueError: another command writes there, or the folder holds other files or parts of other facts.
    """
    facts = plain(dict(facts))
    with ExitStack() as stack:
        if here.is_main:
            stack.enter_context(alone_in(folder))
            if not (folder / MADE_OF).exists():
                if any(item.name != ".lock" for item in folder.iterdir()):
                    raise ValueError(f"{folder} holds other files; choose another folder")
                write_json(folder / MADE_OF, facts)
            (folder / ENDED).unlink(missing_ok=True)
        here.meet()
        check_made_of(folder, facts, what)
        yield


def check_made_of(folder: Path, facts: Mapping[str, Any], what: str = "what is kept") -> None:
    """Raises ValueError if the parts in `folder` were made with other `facts`, which are as `plain` gives them."""
    before = read_json(folder / MADE_OF, f"it says how {what} was made")
    if before != facts:
        name = next(name for name in before.keys() | facts.keys() if before.get(name) != facts.get(name))
        raise ValueError(
            f"{what} in {folder} was made with {name} = {before.get(name)!r:.80}, not {facts.get(name)!r:.80}; delete "
            "it or choose another folder"
        )


def share(
    missing: Sequence[int],
    sizes: Sequence[float],
    make: Callable[[int], bool],
    here: Processes,
    *,
    folder: Path | None,
    title: str,
) -> None:
    """Makes this process's share of the missing parts; `make(k)` returns whether the parts so far are on the disk.

    Raises:
        Interrupted: the work was told to stop. Without a folder a signal has its usual effect.
    """
    mine = missing[here.index :: here.count]
    ended = folder / ENDED if folder is not None and here.count > 1 else None
    noted = interrupts() if folder is not None else nullcontext(Interrupt())
    try:
        with noted as interrupt, progress(title, sum(sizes[k] for k in mine)) as tell:
            for k in mine:
                if ended is not None and ended.exists():
                    return  # the next meeting says why
                with as_part(tell, sizes[k]):
                    kept = make(k)
                if interrupt.by:
                    said = STOPPED.format(folder) if kept else "stopped; nothing half-written was left"
                    raise Interrupted(said, interrupt.by)
    except BaseException:
        if ended is not None:
            ended.touch()
        raise


def in_ranges(count: int, size: int) -> list[range]:
    """The numbers 0 to count − 1 in ranges of `size`; the last may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def of_texts(count: int, batch: int) -> list[range]:
    """The numbers 0 to count − 1 in ranges: the first is one batch, the others are `BATCHES` batches each.

    Near the end of a part the batch is no longer refilled, so longer parts waste less. The first part is short, so that
    something is kept soon.
    """
    edges = [0, *range(batch, count, BATCHES * batch), count]
    return [range(start, stop) for start, stop in pairwise(edges) if start < stop]
