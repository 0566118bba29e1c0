"""Long work says how far it is; short, nested and silent work says nothing."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from fewstep.core import progress as module
from fewstep.core.progress import progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the one entry of a list."""
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


def work(clock: list[float], seconds: list[float]) -> None:
    """Parts of equal size that take so many seconds each."""
    for second in track(seconds, "counting"):
        clock[0] += second


def test_a_log_gets_a_line_each_thirty_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work(clock, [10.0] * 20)
    # told at 30, 60, … seconds: 15 %, 30 %, … are done, and the rest takes as long a part
    assert caplog.messages[:2] == ["counting: 15 %, 0:02:50 left", "counting: 30 %, 0:02:20 left"]
    assert len(caplog.messages) == 6
    caplog.clear()
    work(clock, [1.0] * 20)
    assert not caplog.messages


def test_no_more_than_all_is_ever_done(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress("waiting", 20) as done:
        for _ in range(60):
            clock[0] += 1
            done(1)
    assert caplog.messages == ["waiting: 30 seconds, longer than expected", "waiting: 60 seconds, longer than expected"]


@pytest.mark.parametrize(("seconds", "shown"), [(0.9, False), (1.1, True)])
def test_a_terminal_gets_a_bar_for_what_takes_longer_than_ten_seconds(
    seconds: float, shown: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(clock, [seconds] * 10)
    assert ("counting" in terminal.getvalue() and "left" in terminal.getvalue()) == shown
    assert not caplog.messages


def test_what_is_printed_meanwhile_stays_where_it_goes(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", file)
    for number in track(range(5), "counting"):
        clock[0] += 10
        print(f"result {number}")
    assert file.getvalue().count("result") == 5 and "result" not in terminal.getvalue()


def test_work_inside_work_and_work_of_a_library_are_silent(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress("outer", 2) as done:
        for _ in range(2):
            work(clock, [40.0])
            done(1)
    assert caplog.messages == ["outer: 50 %, 0:00:40 left", "outer: 100 %, 0:00:00 left"]
    caplog.clear()
    caplog.set_level(logging.WARNING)
    work(clock, [40.0, 40.0])
    assert not caplog.messages
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyError), progress("broken", 2):
        raise KeyError
    work(clock, [40.0])  # what broke has left the screen
    assert caplog.messages == ["counting: 100 %, 0:00:00 left"]
