"""How a run is watched: a frozen dataclass that checks its values. Its fields are flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.checks import at_least

LOOKS = 8  # at a run by default
SELDOM = 1000  # images between two looks at least, by default
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class Watching:
    """How a run is watched while it trains. Watching does not change the training: results are bit-equal."""

    look_every: int | None = None
    """images between two looks at the averaged model. A look draws samples of fixed seeds and writes a line of watch.jsonl,
    with the loss by noise level since the last look, and a sheet of samples in watch/. By default an eighth of the run and
    at least 1000; 0 is no looks."""
    look_n: int = 16
    """number of samples of a look, at least 2. Those of a pipeline are shown if its other parts are below 1 GiB."""
    look_steps: tuple[int, ...] = ()
    """numbers of network calls for these samples; by default those that the student is made for, and 1 2 4 for any."""
    look_score: int = 0
    """number of samples that each look scores against the data, 0 or at least 20, always with the same seeds. The data must
    be pictures. `fewstep forecast` needs these scores."""
    track: tuple[TrackerName, ...] = ()
    """trackers to report to, through accelerate: tensorboard, wandb, trackio. tensorboard writes into track/ in the run's
    folder."""
    stop_collapsed: bool = True
    """stop if the samples collapse: all alike, saturated, blown up or not finite. The last sound state is kept."""

    def __post_init__(self) -> None:
        at_least(0, look_every=self.look_every)
        at_least(2, look_n=self.look_n)
        at_least(1, look_steps=self.look_steps)
        if self.look_score:
            at_least(20, look_score=self.look_score)  # for an interval
        if self.look_score and self.look_every == 0:
            raise ValueError("--look-score needs looks; leave --look-every 0 out")

    def every(self, images: int) -> int:
        """Images between two looks at a run of `images` images; 0 is no looks."""
        return max(SELDOM, images // LOOKS) if self.look_every is None else self.look_every
