"""How a run is watched: a frozen dataclass that refuses what cannot be, whose fields are flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.checks import at_least

LOOKS = 8  # at a run, unless told otherwise
SELDOM = 1000  # images; looks that come more often than that have to be asked for
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class Watching:
    """How a run is watched while it trains. It trains the same, bit for bit, watched or not."""

    look_every: int | None = None
    """images between two looks at the averaged model: samples of fixed seeds, and the loss at each noise level since the
    last look. A line of watch.jsonl and a sheet in watch/ say what was seen. By default an eighth of the run, and at least
    1000; 0 does not look."""
    look_n: int = 16
    """samples of a look. Those of a pipeline are shown where its other parts are small, below 1 GiB."""
    look_steps: tuple[int, ...] = ()
    """network calls of these samples, by default those that the student is made for, and 1 2 4 for any."""
    look_score: int = 0
    """so many samples are also scored at each look, always of the same seeds, against the data, which must be pictures;
    fewstep forecast goes by these scores."""
    track: tuple[TrackerName, ...] = ()
    """also report to these, through accelerate: tensorboard, wandb, trackio. tensorboard writes into track/ in the run's
    folder."""
    stop_collapsed: bool = True
    """stop where the samples collapse: all alike, saturated, blown up or not finite. The state before stays."""

    def __post_init__(self) -> None:
        at_least(0, look_every=self.look_every)
        at_least(2, look_n=self.look_n)
        at_least(1, look_steps=self.look_steps)
        if self.look_score:
            at_least(20, look_score=self.look_score)  # for an interval
        if self.look_score and self.look_every == 0:
            raise ValueError("--look-score scores the samples of looks; leave --look-every 0 out")

    def every(self, images: int) -> int:
        """Images between two looks at a run of so many; 0 for none."""
        return max(SELDOM, images // LOOKS) if self.look_every is None else self.look_every
