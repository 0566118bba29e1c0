"""When a run saves its state, and what becomes of the rest where something cannot be written."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import save_state
from ..core.interrupts import Interrupt, Interrupted, agreed
from .formats.folder import save
from .model import Model
from .step import Step
from .watcher import Watcher

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass
class Saver:
    """Called after each step, saves its state if that is due or the run is told to stop.

    The main process looks at its clock and writes; all decide alike.

    Attributes:
        file: for the state.
        kept: what stands in it beside `Step.state()`.
        spent: says what the run has cost so far.
        accelerator, interrupt: of the run.
        every: seconds between saved states.
        watcher: looks at the run, if anybody does.
        saved: when the last one was, on `time.monotonic()`.
        sound: where the state of the last look stays at which the samples had not collapsed.
    """

    file: Path
    kept: dict[str, Any]
    spent: Callable[[], dict[str, Any]]
    accelerator: Accelerator
    interrupt: Interrupt
    every: float
    watcher: Watcher | None = None
    saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.watcher is not None and self.watcher.looks and self.accelerator.is_main_process:
            self._keep(anew=False)  # that of a run which is resumed

    @property
    def sound(self) -> Path:
        return self.file.with_name("sound.pt")

    def look(self, step: Step) -> bool:
        """Whether the samples of a step were looked at and have not collapsed.

        Raises:
            FloatingPointError: they have; the saved state is again that of the last look at which they had not.
        """
        happened = None if self.watcher is None else self.watcher(step)
        if happened and self.accelerator.is_main_process:
            self.file.unlink(missing_ok=True)
            if self.sound.exists():
                os.replace(self.sound, self.file)
        if happened:
            raise FloatingPointError(happened)
        return happened is not None

    def __call__(self, step: Step, *, sound: bool = False) -> None:
        """Saves what is `sound` to go on from in any case.

        Raises:
            Interrupted: the run is told to stop.
            OSError: so it is, and nothing could be written.
        """
        main = self.accelerator.is_main_process
        stop, due = agreed(self.accelerator, self.interrupt.by, main and time.monotonic() - self.saved >= self.every)
        if not (stop or due or sound):
            return
        state = self.whole(step)
        if main and self._write(state, last=stop > 0) and sound:
            self._keep(anew=True)
        if stop:
            raise Interrupted(f"stopped after {step.images} images; they are saved, go on with --resume", stop)
        self.saved = time.monotonic()

    def whole(self, step: Step) -> dict[str, Any]:
        """All that stands in the file; every process has to ask."""
        watched = {} if self.watcher is None else self.watcher.state()
        return step.state() | self.kept | {"loss": step.loss} | self.spent() | watched

    def _keep(self, *, anew: bool) -> None:
        """The saved state stays under another name as well, which takes no room until the next one is saved.

        Where a disk has no two names for a file it is copied. The one before stays until its successor is there.
        """
        if not self.file.exists() or (self.sound.exists() and not anew):
            return
        new = self.sound.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            try:
                os.link(self.file, new)
            except OSError:
                shutil.copyfile(self.file, new)
            os.replace(new, self.sound)
        except OSError as error:
            new.unlink(missing_ok=True)
            logger.warning("%s could not be kept for a collapse (%s): make room", self.file, error.strerror)

    def _write(self, state: dict[str, Any], *, last: bool) -> bool:
        """Whether it could be written."""
        try:
            save_state(self.file, state)
            return True
        except OSError as error:
            if last:
                raise OSError(
                    f"stopped, but {self.file} could not be written ({error.strerror}): make room, and --resume goes on "
                    "from what was saved before"
                ) from error
            logger.warning("%s could not be written (%s): make room, it is tried again", self.file, error.strerror)
            return False


def write_all(file: Path, state: dict[str, Any], models: Mapping[Path, Model]) -> None:
    """Writes the state, from which the rest could be had again, and then the models; none waits for another's success.

    Raises:
        OSError: a sentence that says what could not be written, what is there and how to go on.
    """
    writes = {file: partial(save_state, file, state)}
    writes |= {folder: partial(save, model, folder) for folder, model in models.items()}
    failed = {}
    for path, write in writes.items():
        try:
            write()
        except OSError as error:
            failed[path] = error.strerror
    if failed:
        missing = " and ".join(f"{path} ({why})" for path, why in failed.items())
        there = " and ".join(str(path) for path in writes if path not in failed) or "what was saved before"
        raise OSError(
            f"{missing} could not be written, {there} is complete: make room and give the same command with --resume, "
            "which writes the rest"
        )
