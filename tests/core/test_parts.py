"""Work in parts: what is made lies on the disk or in memory, and is made once. Several processes: test_many.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fewstep.core import parts
from fewstep.core.interrupts import Interrupted
from fewstep.core.parts import AS_JSON, BATCHES, Works, hidden, in_parts, in_ranges, of_texts
from fewstep.core.processes import Elsewhere, Processes, Said, together
from fewstep.core.source import JSON_BYTES


class Work:
    """Ten numbers in four parts; remembers which parts it made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[int]()

    def make(self, k: int) -> list[float]:
        self.made.append(k)
        return [number / 3 for number in in_ranges(10, 3)[k]]

    def run(self, **facts: Any) -> list[float]:
        with in_parts(self.folder, {"of": "thirds", **facts}, [3, 3, 3, 1], self.make, title="dividing") as found:
            return [number for part in found for number in part]


WHOLE = [number / 3 for number in range(10)]


def test_short_work_leaves_nothing_and_needs_no_folder(tmp_path) -> None:
    work = Work(hidden(tmp_path / "result.json"))
    assert work.run() == WHOLE and not list(tmp_path.iterdir())
    work.folder = None
    assert work.run() == WHOLE and work.made == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("kind", ["error", "signal"])
def test_long_work_goes_on_where_it_was_stopped(tmp_path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(parts, "KEPT_AFTER", 0.0)
    work, make = Work(hidden(tmp_path / "result.json")), Work.make

    def stopped(k: int) -> list[float]:
        if kind == "signal" and k == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "error" and k == 2:
            raise RuntimeError("out of power")
        return make(work, k)

    work.make = stopped
    with pytest.raises(
        (RuntimeError, Interrupted), match=r"out of power|finished parts are in .*\.result\.json\.parts, and"
    ):
        work.run()
    with pytest.raises(ValueError, match="was made with of = 'thirds', not 'halves'; delete it or choose another"):
        work.run(of="halves")
    work.make = lambda k: make(work, k)
    assert work.made == [0, 1] and work.run() == WHOLE
    assert work.made == [0, 1, 2, 3] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "kept"), [(1.5, []), (2.0, ["00000.json", "00001.json", "00002.json"])])
def test_work_is_kept_from_the_first_part_that_ends_after_five_seconds(tmp_path, monkeypatch, seconds, kept) -> None:
    """Of parts that take so many seconds each, by a clock that only they move, and power that fails in the fourth."""
    work, make, clock = Work(tmp_path / "parts"), Work.make, [0.0]
    monkeypatch.setattr(parts, "monotonic", lambda: clock[0])

    def slow(k: int) -> list[float]:
        if k == 3:
            raise RuntimeError("out of power")
        clock[0] += seconds
        return make(work, k)

    work.make = slow
    with pytest.raises(RuntimeError, match="out of power"):
        work.run()
    assert sorted(file.name for file in work.folder.glob("0*")) == kept


@pytest.mark.parametrize("count", [0, 1, 16, 17, 144, 145, 500])
def test_texts_are_divided_into_one_batch_and_then_several_at_once(count: int) -> None:
    found = of_texts(count, 16)
    assert [number for part in found for number in part] == list(range(count))
    assert [len(part) for part in found[:2]] == [size for size in (min(count, 16), min(count - 16, 128)) if size > 0]


def test_short_work_that_is_stopped_leaves_nothing(tmp_path) -> None:
    work = Work(tmp_path / "parts")
    work.make = lambda k: os.kill(os.getpid(), signal.SIGTERM) or []
    with pytest.raises(Interrupted, match="stopped; nothing half-written was left"):
        work.run()
    assert not list(tmp_path.iterdir())


def test_several_works_of_one_result_stay_until_it_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "KEPT_AFTER", 0.0)
    asked, made = [f"question {k}" for k in range(20)], list[range]()

    def answer(part: range) -> list[str]:
        made.append(part)
        return [asked[k].upper() for k in part]

    for _ in range(2):
        works = Works(tmp_path / "works", {"model": "one"})
        assert works.answers("answers", asked, 1, answer) == [question.upper() for question in asked]
        assert works.answers("answers", asked[:1], 1, answer) == [question.upper() for question in asked[:1]]
    assert made[:5] == [*of_texts(20, 1), range(1)] and of_texts(20, 1)[:2] == [range(1), range(1, 1 + BATCHES)]
    assert len(made) == 6  # a work of a single part is as short as that
    works.end()
    assert not list(tmp_path.iterdir())


def test_stopped_in_a_short_work_a_command_says_where_the_works_before_it_are(tmp_path, monkeypatch) -> None:
    works, asked = Works(tmp_path / "works"), [f"question {k}" for k in range(20)]

    def stopped(part: range) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return ["" for _ in part]

    with pytest.raises(Interrupted, match="stopped; nothing half-written was left"):
        works.answers("short", asked, 1, stopped)
    monkeypatch.setattr(parts, "KEPT_AFTER", 0.0)
    works.answers("long", asked, 1, lambda part: [asked[k] for k in part])
    monkeypatch.undo()
    with pytest.raises(Interrupted, match=r"finished parts are in .*works, and the same command goes on") as stop:
        works.answers("short", asked, 1, stopped)
    assert stop.value.signal == signal.SIGTERM
    assert [item.name for item in (tmp_path / "works").iterdir()] == ["long-1"]


def test_a_part_is_what_it_was_however_long(tmp_path) -> None:
    part = ["x" * JSON_BYTES, 0.1 + 0.2, float("-inf"), None, {"steps": [-1, 0]}]
    AS_JSON.write(tmp_path / "0.json", part)
    assert AS_JSON.read(tmp_path / "0.json") == part


def test_what_is_told_of_an_error_is_that_error() -> None:
    for error in (ValueError("no"), FloatingPointError("nan"), OSError(28, "No space left", "file"), Interrupted("on", 15)):
        again = Said.of(error).again()
        assert type(again) is type(error) and str(again) == str(error)
    assert Said.of(Interrupted("on", 15)).code == 143 and Said.of(ValueError("no")).code == 2
    assert str(Said.of(KeyError("x")).again()) == "another process of this command ended with KeyError: 'x'"
    assert Elsewhere(2).code == 2


def test_one_process_is_together_alone() -> None:
    with together() as here, together() as inside:
        assert here is inside and here == Processes() and here.is_main and here.meet("said") == "said"


def test_parts_of_other_sizes_are_of_another_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "KEPT_AFTER", 0.0)
    folder = hidden(tmp_path / "result.json")

    def stopped(k: int) -> list[int]:
        if k:
            raise RuntimeError("out of power")
        return [k]

    with pytest.raises(RuntimeError), in_parts(folder, {}, [3, 7], stopped, title="counting"):
        pass
    other = in_parts(folder, {}, [5, 5], stopped, title="counting")
    with pytest.raises(ValueError, match=r"sizes = \[3, 7\], not \[5, 5\]"), other:
        pass
