"""What one chooses for scores: a frozen dataclass that refuses what cannot be, whose fields are flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.checks import at_least


@dataclass(frozen=True)
class Scoring:
    """What samples are scored against, and how."""

    data: str
    """real images to compare with: an .npz, a folder or zip, a .parquet, a table, a hub data set, `bundled` or
    `bundled-text`."""
    out: Path
    """folder for figures, plots and pictures."""
    n: int = 1000
    """samples for each score; scores compare only at the same n."""
    features: str | None = None
    """inception, the folder or hub id of a DINOv2 model, random (untrained) or fashion (bundled); by default fashion for
    `bundled` data and random for all other."""
    seed: int = 0
    """of the first sample."""
    batch: int = 250
    """samples at once."""
    precision: Literal["no", "bf16"] = "no"
    """no (float32) or bf16."""
    prompts: Path | None = None
    """a text file with a prompt a line, which pipelines are asked for in turn. For a pipeline of classes it holds their
    numbers; by default each class is asked for as often as the real images have it."""
    guidance: float | None = None
    """guidance_scale of a teacher that is a pipeline; by default what the student was tuned with."""
    match: str | None = None
    """says how well pictures match their prompts: the folder or hub id of a CLIP model, or clothes (bundled); by default
    clothes for `bundled-text` data."""

    def __post_init__(self) -> None:
        at_least(0, guidance=self.guidance)
        at_least(20, n=self.n)  # for an interval
        at_least(1, batch=self.batch)
        at_least(0, seed=self.seed)
