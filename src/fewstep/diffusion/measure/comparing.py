"""Models beside each other: scored against real images, with a table, a plot and pictures in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.receipt import receipt
from ..cond import CLASS, NOTHING, Cond, labelled
from ..data import Samples
from ..denoiser import Denoiser
from ..report import plot, sheet
from ..space import Pixels
from .dial import Looks, Point, Setting, difference, recommend, scores
from .features import View


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        points: of each setting.
        real: how the real images look.
        recommendation: where on the dial to stand, if that was asked.
    """

    points: list[Point]
    real: Looks
    recommendation: str | None


def image_shape(denoiser: Denoiser) -> tuple[int, int, int]:
    """(C, H, W) of the images that it makes; ValueError if it makes anything else."""
    if not isinstance(denoiser.space, Pixels):
        raise ValueError(f"this model makes {denoiser.space}; only images can be scored")
    return denoiser.space.shape


def common_shape(settings: Sequence[Setting]) -> tuple[int, int, int]:
    """(C, H, W) of the images that all of them make; ValueError if there is no such shape."""
    first = settings[0]
    for setting in settings:
        if image_shape(setting.denoiser) != image_shape(first.denoiser):
            raise ValueError(f"{setting.name} makes images of another shape than {first.name}")
    return image_shape(first.denoiser)


def compare(
    settings: Sequence[Setting],
    images: Samples,
    out: Path,
    *,
    n: int,
    networks: dict[str, nn.Module],
    bundled: bool = False,
    seed: int = 0,
    batch: int = 250,
    precision: str = "no",
    within: float | None = None,
    **facts: Any,
) -> Comparison:
    """Scores `settings` on the same seeds; leaves measure.json, quality.png and samples.png in `out`.

    Args:
        settings: models and how they are sampled; those called "teacher" are what the others are held against.
        images: real ones, in an order of chance.
        out: the folder.
        n: samples for each score.
        networks: the extractors, by name; see `features.extractors`.
        bundled: whether the images are some of those that come with the package.
        seed: of the first sample.
        batch: samples at once.
        precision: "no" (float32) or "bf16" in the models.
        within: asks where on the dial to stand: how much worse than the teacher's best, as a share, is good enough.
        facts: for the receipt.

    Raises:
        ValueError: latents in place of images, or no classes where a model wants some.
    """
    if images.raw([0]).dtype != torch.uint8:
        raise ValueError("these data are latents; only images can be compared with")
    views = [View.of(name, network, images, bundled=bundled) for name, network in networks.items()]
    real, first = Looks.over(images), views[0].name
    with receipt(out / "measure.json", features=first, seed=seed, precision=precision, **facts) as entries:
        cond = partial(_labels, images=images, n=n)
        points = scores(settings, range(seed, seed + n), views, batch=batch, precision=precision, cond=cond)
        entries |= {"points": [point.summary() for point in points], "real": real._asdict()}
        teachers = [point for point in points if point.name == "teacher"]
        if teachers:
            best = min(teachers, key=lambda point: point.frechet[first].value)
            entries["minus_best_teacher"] = [
                {"name": p.name, "nfe": p.nfe} | {view.name: difference(p, best, view)._asdict() for view in views}
                for p in points
                if p.name != "teacher"
            ]
        said = None if within is None else recommend(points, views, within=within)
        if said:
            entries |= {"within": within, "recommendation": said}
        plot(points, out / "quality.png")
        sheet(points, out / "samples.png")
    return Comparison(points, real, said)


def _labels(denoiser: Denoiser, images: Samples, n: int) -> Cond:
    """Classes as often as the real images have them, in their order."""
    if not denoiser.takes:
        return NOTHING
    if images.label_range is None:
        raise ValueError("this model is conditional on classes, but the data have no labels to draw them from")
    return labelled(torch.stack([images.cond(k % len(images))[CLASS] for k in range(n)]))
