"""Ctrl-C and SIGTERM are noted, and a loop asks for them between two steps. No exception interrupts a step."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop and has saved what it could. The message says what is saved and how to go on."""

    def __init__(self, sentence: str, by: int) -> None:
        super().__init__(sentence)
        self.signal = by


class Interrupt:
    """Whether the process was asked to stop: `by` is the number of the signal, 0 if there was none."""

    def __init__(self) -> None:
        self.by = 0


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Inside the block the first Ctrl-C or SIGTERM is only noted; a second one has its usual effect.

    Signals that the process ignores stay ignored, and outside the main thread nothing is noted.
    """
    asked, process = Interrupt(), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a loader's worker, which its parent ends
            return
        asked.by = number
        put_back()
        logger.info("stopping after this step; repeat to stop at once and lose what is not saved")

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield asked
    finally:
        put_back()


def agreed(accelerator: Accelerator, *wishes: int) -> list[int]:
    """The largest of each wish over all processes. Every process has to call this, and all get the same."""
    if accelerator.num_processes == 1:
        return list(wishes)
    import torch

    mine = torch.tensor(wishes, device=accelerator.device)
    found: list[int] = accelerator.gather(mine[None]).max(0).values.tolist()
    return found
