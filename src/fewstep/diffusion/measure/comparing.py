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
from ..asked import asked_of, in_turn, once
from ..cond import CLASS, NOTHING, Cond, labelled
from ..data import Samples
from ..denoiser import Denoiser
from ..encoding import shown_by
from ..pipeline import Pipeline
from ..report import plot, sheet
from ..space import Pixels
from .dial import Looks, Point, Recommended, Setting, difference, recommend, scores
from .features import View
from .matching import Match


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        points: of each setting.
        real: how the real images look.
        recommended: where on the dial to stand, if that was asked.
    """

    points: list[Point]
    real: Looks
    recommended: Recommended | None


def image_shape(denoiser: Denoiser) -> tuple[int, int, int]:
    """(C, H, W) of the images that it makes; ValueError if it makes anything else."""
    if not isinstance(denoiser.space, Pixels):
        shape = "x".join(map(str, denoiser.space.shape))
        raise ValueError(f"this model makes samples of {shape} that are no pictures, and only pictures can be scored")
    return denoiser.space.shape


def common_shape(settings: Sequence[Setting]) -> tuple[int, int, int]:
    """(C, H, W) of the images that all of them make; ValueError if there is no such shape."""
    shapes = {setting.pipeline: _shape(setting) for setting in settings}
    first = shapes[settings[0].pipeline]
    for setting in settings:
        if shapes[setting.pipeline] != first:
            raise ValueError(f"{setting.name} makes images of another shape than {settings[0].name}")
    return first


def _shape(setting: Setting) -> tuple[int, int, int]:
    return image_shape(setting.denoiser) if setting.pipeline is None else shown_by(setting.pipeline)


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
    prompts: Sequence[str] | None = None,
    judge: Match | None = None,
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
        prompts: what pipelines are asked for in turn; classes as often as the real images have them if left out.
        judge: says how well a picture matches its prompt; see `matching.match`.
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
        cond = partial(told, images=images, n=n, prompts=prompts, known={})
        match = partial(judge, prompts=in_turn(prompts, range(n))) if judge and prompts else None
        points = scores(settings, range(seed, seed + n), views, batch=batch, precision=precision, cond=cond, match=match)
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
            entries |= {"within": within, "recommendation": said.sentence}
        plot(points, out / "quality.png")
        sheet(points, out / "samples.png")
    return Comparison(points, real, said)


def told(setting: Setting, images: Samples, n: int, prompts: Sequence[str] | None, known: dict[Pipeline, Cond]) -> Cond:
    """What a model is given: classes, or whatever its pipeline makes of classes or prompts, which is kept in `known`."""
    pipeline, denoiser = setting.pipeline, setting.denoiser
    if pipeline is None:
        return _labels(denoiser, images, n)
    if pipeline not in known:
        by_class = denoiser.classes is not None and prompts is None
        asked = _labels(denoiser, images, n).rows[CLASS].tolist() if by_class else asked_of(pipeline, denoiser, prompts)
        each_once = once(asked)
        place = {each: k for k, each in enumerate(each_once)}
        rows = torch.tensor([place[each] for each in in_turn(asked, range(n))])
        known[pipeline] = pipeline.conditions(each_once)[0].part(rows)
    return known[pipeline]


def _labels(denoiser: Denoiser, images: Samples, n: int) -> Cond:
    """Classes as often as the real images have them, in their order."""
    if not denoiser.takes:
        return NOTHING
    if images.label_range is None:
        raise ValueError("this model is conditional on classes, but the data have no labels to draw them from")
    return labelled(torch.stack([images.cond(k % len(images))[CLASS] for k in range(n)]))
