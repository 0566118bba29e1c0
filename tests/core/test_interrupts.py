from __future__ import annotations

import os
import signal
import threading

import pytest

from fewstep.core.interrupts import interrupts


def terminated(number: int, frame: object) -> None:
    raise SystemExit("as before")


@pytest.mark.parametrize(("number", "before"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did(number: int, before: type[BaseException]) -> None:
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminated}
    found = {each: signal.signal(each, handler) for each, handler in usual.items()}
    try:
        with interrupts() as interrupt:
            assert interrupt.by == 0
            os.kill(os.getpid(), number)
            assert interrupt.by == number
            with pytest.raises(before):
                os.kill(os.getpid(), number)
        with interrupts():
            pass
        assert {each: signal.getsignal(each) for each in usual} == usual
    finally:
        for each, handler in found.items():
            signal.signal(each, handler)


def test_what_is_ignored_stays_ignored() -> None:
    """As a shell does with what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.by == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_notes_nothing() -> None:
    found = []

    def work() -> None:
        with interrupts() as interrupt:
            found.append(interrupt.by)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]
