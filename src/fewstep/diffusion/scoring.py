"""The settings of scores: a frozen dataclass that checks its values. Its fields are flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.checks import at_least


@dataclass(frozen=True)
class Scoring:
    """How samples are scored, and against which data."""

    data: str
    """real images to compare with: an .npz file, a folder or zip of images, a .parquet file, a table, a hub data set,
    `bundled` or `bundled-text`."""
    out: Path
    """folder for figures, plots and pictures."""
    n: int = 1000
    """number of samples for each score, at least 20. Scores are comparable only at the same n."""
    features: str | None = None
    """feature network: inception, the folder or hub id of a DINOv2 model, random (untrained) or fashion (bundled). By
    default fashion for `bundled` data and random for all others."""
    seed: int = 0
    """seed of the first sample; the others count up from it."""
    batch: int = 250
    """number of samples at once."""
    precision: Literal["no", "bf16"] = "no"
    """no (float32) or bf16."""
    prompts: Path | None = None
    """a text file with one prompt per line; they take turns. For a pipeline of classes the lines are class numbers. By
    default each class is drawn as often as the real images have it."""
    guidance: float | None = None
    """guidance_scale of a teacher that is a pipeline; by default that with which the student was tuned."""
    match: str | None = None
    """model that scores how well pictures match their prompts: the folder or hub id of a CLIP model, or clothes (bundled).
    By default clothes for `bundled-text` data."""

    def __post_init__(self) -> None:
        at_least(0, guidance=self.guidance)
        at_least(20, n=self.n)  # for an interval
        at_least(1, batch=self.batch)
        at_least(0, seed=self.seed)
