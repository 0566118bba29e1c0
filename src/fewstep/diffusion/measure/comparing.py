"""Models beside each other: scored against real images, with a table, a plot and pictures in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.parts import hidden
from ...core.processes import together
from ...core.receipt import receipt
from ..asked import asked_of, in_turn, once
from ..cond import CLASS, NOTHING, Cond, labelled
from ..data import Samples
from ..denoiser import Denoiser
from ..encoding import shown_by
from ..pipeline import Pipeline
from ..report import keep_pictures, plot, sheet
from ..space import Pixels
from .dial import Looks, Point, Recommended, check_enough, difference, recommend, scored
from .features import View
from .matching import Match
from .seen import Matching, Setting, sampled


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

    def without_arrays(self) -> Comparison:
        """The figures alone."""
        said = self.recommended
        points = [point.without_arrays() for point in self.points]
        return Comparison(points, self.real, said and said._replace(point=said.point.without_arrays()))


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
    decided_by: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Comparison:
    """Scores `settings` on the same seeds; leaves measure.json, quality.png, samples.png and pictures/ in `out`.

    All processes of the command sample; the main one scores and writes, and the points of the others hold no arrays.

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
        decided_by: what decides the samples beside their number; what is kept of others is not taken for theirs.
        facts: for the receipt.

    Raises:
        ValueError: latents in place of images, or no classes where a model wants some.
    """
    if images.raw([0]).dtype != torch.uint8:
        raise ValueError("these data are latents; only images can be compared with")
    check_enough(n, len(images))
    first = next(iter(networks))
    cond = partial(told, images=images, n=n, prompts=prompts, known={})
    made = sampled(
        [[setting] for setting in settings], range(seed, seed + n), networks, batch=batch, precision=precision, cond=cond,
        match=matches(judge, prompts), looks=Looks.each, folder=hidden(out / "measure.json"),
        facts={"seed": seed, "features": list(networks), **(decided_by or {})},
    )  # fmt: skip
    facts |= {"features": first, "seed": seed, "precision": precision}
    with together() as here, receipt(out / "measure.json" if here.is_main else None, **facts) as entries, made as seen:
        found = None
        if here.is_main:
            views = [View.of(name, network, images, bundled=bundled) for name, network in networks.items()]
            points = [scored(setting, seen(k, 0), views, batch=batch) for k, setting in enumerate(settings)]
            found = _comparison(points, Looks.over(images), views, within)
            entries.update(_entries(found, views), **({} if within is None else {"within": within}))
            plot(points, out / "quality.png")
            sheet(points, out / "samples.png")
            entries["pictures"] = keep_pictures(points, out, seed=seed, asked=prompts)
        bare: Comparison = here.meet(found and found.without_arrays())
    return found or bare


def _comparison(points: list[Point], real: Looks, views: Sequence[View], within: float | None) -> Comparison:
    return Comparison(points, real, None if within is None else recommend(points, views, within=within))


def _entries(found: Comparison, views: Sequence[View]) -> dict[str, Any]:
    """What measure.json says of it."""
    points, first = found.points, views[0].name
    entries: dict[str, Any] = {"points": [point.summary() for point in points], "real": found.real._asdict()}
    teachers = [point for point in points if point.name == "teacher"]
    if teachers:
        best = min(teachers, key=lambda point: point.frechet[first].value)
        entries["minus_best_teacher"] = [
            {"name": p.name, "nfe": p.nfe} | {view.name: difference(p, best, view)._asdict() for view in views}
            for p in points
            if p.name != "teacher"
        ]
    if found.recommended:
        entries["recommendation"] = found.recommended.sentence
    return entries


def matches(judge: Match | None, prompts: Sequence[str] | None) -> Matching | None:
    """How well pictures show what they were asked for, by their numbers; None where nobody judges."""
    if judge is None or not prompts:
        return None
    return lambda pictures, rows: judge(pictures, in_turn(prompts, rows))


@dataclass(frozen=True)
class Telling:
    """Conditions, and which of them each sample is about; no more rows are made than are asked for."""

    cond: Cond
    rows: Tensor

    def part(self, rows: slice) -> Cond:
        """Those of these samples."""
        return self.cond.part(self.rows[rows])

    def whole(self) -> Cond:
        """Those of all."""
        return self.cond.part(self.rows)


def told(
    setting: Setting, images: Samples, n: int, prompts: Sequence[str] | None, known: dict[Pipeline, Telling]
) -> Telling:
    """What a model is given: classes, or whatever its pipeline makes of classes or prompts, which is kept in `known`."""
    pipeline, denoiser = setting.pipeline, setting.denoiser
    if pipeline is None:
        return Telling(_labels(denoiser, images, n), torch.arange(n))
    if pipeline not in known:
        by_class = denoiser.classes is not None and prompts is None
        asked = _labels(denoiser, images, n).rows[CLASS].tolist() if by_class else asked_of(pipeline, denoiser, prompts)
        each_once = once(asked)
        place = {each: k for k, each in enumerate(each_once)}
        rows = torch.tensor([place[each] for each in in_turn(asked, range(n))])
        known[pipeline] = Telling(pipeline.conditions(each_once)[0], rows)
    return known[pipeline]


def _labels(denoiser: Denoiser, images: Samples, n: int) -> Cond:
    """Classes as often as the real images have them, in their order."""
    if not denoiser.takes:
        return NOTHING
    if images.label_range is None:
        raise ValueError("this model is conditional on classes, but the data have no labels to draw them from")
    return labelled(torch.stack([images.cond(k % len(images))[CLASS] for k in range(n)]))
