"""Reports of a run to tensorboard, wandb and trackio, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError if the library of a tracker is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    there = {str(each) for each in get_available_trackers()}
    for name in names:
        if name not in there:
            raise ValueError(f"--track {name} needs a package that is not installed: pip install {name}")


class Tracking:
    """The trackers of a run, for the main process. There may be none.

    Args:
        names: names of the trackers.
        folder: tensorboard's folder inside the run's folder. The other trackers name the run after the run's folder.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.folder = names, folder
        self.trackers: list[Any] = []

    def begin(self, step: int) -> None:
        """Starts the trackers. tensorboard drops reports of steps after `step`, from before a run was resumed."""
        check_trackers(self.names)
        for name in self.names:
            self.trackers.append(_tracker(name, self.folder, step))
            self.trackers[-1].start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Reports named numbers after this step."""
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def show(self, sheet: Tensor, step: int) -> None:
        """Reports a picture (H, W, C), uint8, after this step."""
        for tracker in self.trackers:
            if hasattr(tracker, "log_images"):
                more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": sheet[None].numpy()}, step=step, **more)

    def end(self) -> None:
        """Ends the trackers."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


def _tracker(name: str, folder: Path, step: int) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return kind(folder.name, folder.parent, purge_step=step + 1)
    return kind("fewstep", name=folder.resolve().parent.name)
