"""Saves the state and the models of a run, and reports what could not be written."""

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
    """Called after each step; saves the state if that is due or the run is told to stop.

    The main process measures the time and writes. All processes take the same decision.

    Attributes:
        file: file for the state.
        kept: entries of the file besides `Step.state()`.
        spent: returns what the run has cost so far.
        accelerator, interrupt: those of the run.
        every: seconds between saved states.
        watcher: looks at the samples of the run, or None.
        saved: time of the last save, on `time.monotonic()`.
        sound: file that keeps the state of the last look at which the samples had not collapsed.
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
            self._keep(anew=False)  # the state of a resumed run

    @property
    def sound(self) -> Path:
        return self.file.with_name("sound.pt")

    def look(self, step: Step) -> bool:
        """Whether the samples were looked at after this step and have not collapsed.

        Raises:
            FloatingPointError: they have collapsed. The saved state is again that of the last sound look.
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
        """Saves the state if that is due, if it is `sound`, or if the run is told to stop.

        Raises:
            Interrupted: the run was told to stop; the state is saved.
            OSError: the run was told to stop, and the state could not be written.
        """
        main = self.accelerator.is_main_process
        stop, due = agreed(self.accelerator, self.interrupt.by, main and time.monotonic() - self.saved >= self.every)
        if not (stop or due or sound):
            return
        state = self.whole(step)
        if main and self._write(state, last=stop > 0) and sound:
            self._keep(anew=True)
        if stop:
            raise Interrupted(f"stopped after {step.images} images; the state is saved, continue with --resume", stop)
        self.saved = time.monotonic()

    def whole(self, step: Step) -> dict[str, Any]:
        """All entries of the file. Every process must call this."""
        watched = {} if self.watcher is None else self.watcher.state()
        return step.state() | self.kept | {"loss": step.loss} | self.spent() | watched

    def _keep(self, *, anew: bool) -> None:
        """Keeps the saved state under a second name: a hard link, or a copy where the disk has no links.

        The state kept before stays until the new one is in place. Without `anew` a state kept before is not replaced.
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
            logger.warning("%s could not be kept for a collapse (%s): free some disk space", self.file, error.strerror)

    def _write(self, state: dict[str, Any], *, last: bool) -> bool:
        """Writes the state. Returns whether that worked, or raises OSError if it is the last one."""
        try:
            save_state(self.file, state)
            return True
        except OSError as error:
            if last:
                raise OSError(
                    f"stopped, but {self.file} could not be written ({error.strerror}): free some disk space, then "
                    "--resume continues from the state saved before"
                ) from error
            logger.warning(
                "%s could not be written (%s): free some disk space; the next save tries again", self.file, error.strerror
            )
            return False


def write_all(file: Path, state: dict[str, Any], models: Mapping[Path, Model]) -> None:
    """Writes the state and then the models. Where one fails, the others are written all the same.

    Raises:
        OSError: something could not be written; the message says what, what is complete, and how to continue.
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
            f"{missing} could not be written, {there} is complete: free some disk space and repeat the command with "
            "--resume, which writes the rest"
        )
