"""What a run reports to tensorboard, wandb and trackio, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError where the library of one is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    there = {str(each) for each in get_available_trackers()}
    for name in names:
        if name not in there:
            raise ValueError(f"{name} is not installed, so nothing can be reported to it: pip install {name}")


class Tracking:
    """The main process reports here; without any tracker it costs nothing.

    Args:
        names: of the trackers.
        folder: of tensorboard's files, in that of the run, by whose name the others know the run.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.folder = names, folder
        self.trackers: list[Any] = []

    def begin(self, step: int) -> None:
        """Before anything is reported; what was reported of later steps than this one, before a run was resumed, goes."""
        check_trackers(self.names)
        for name in self.names:
            self.trackers.append(_tracker(name, self.folder, step))
            self.trackers[-1].start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by their names, after this step."""
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def show(self, sheet: Tensor, step: int) -> None:
        """A picture (H, W, C), uint8, after this step."""
        for tracker in self.trackers:
            if hasattr(tracker, "log_images"):
                more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": sheet[None].numpy()}, step=step, **more)

    def end(self) -> None:
        """All is reported."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


def _tracker(name: str, folder: Path, step: int) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return kind(folder.name, folder.parent, purge_step=step + 1)
    return kind("fewstep", name=folder.resolve().parent.name)
