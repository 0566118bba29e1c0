"""Compares models by scores against real images, with a plot and pictures in a folder."""

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
    """The result of a comparison.

    Attributes:
        points: one point per setting.
        real: looks of the real images.
        recommended: the recommended setting, if one was asked for.
    """

    points: list[Point]
    real: Looks
    recommended: Recommended | None

    def without_arrays(self) -> Comparison:
        """The figures without arrays."""
        said = self.recommended
        points = [point.without_arrays() for point in self.points]
        return Comparison(points, self.real, said and said._replace(point=said.point.without_arrays()))


def image_shape(denoiser: Denoiser) -> tuple[int, int, int]:
    """The shape (C, H, W) of a model's images; ValueError if its samples are no pictures."""
    if not isinstance(denoiser.space, Pixels):
        shape = "x".join(map(str, denoiser.space.shape))
        raise ValueError(f"this model makes samples of {shape} that are no pictures, and only pictures can be scored")
    return denoiser.space.shape


def common_shape(settings: Sequence[Setting]) -> tuple[int, int, int]:
    """The common shape (C, H, W) of the images of all settings; ValueError if they differ."""
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
    """Scores `settings` on the same seeds; writes measure.json, quality.png, samples.png and pictures/ into `out`.

    All processes sample. The main process scores and writes, and the points of the others have no arrays.

    Args:
        settings: models and how they are sampled. Those named "teacher" are the reference.
        images: real images in random order.
        out: folder for the results.
        n: number of samples for each score, at least 20.
        networks: feature extractors by name; see `features.extractors`.
        bundled: whether the images are bundled ones.
        seed: seed of the first sample; the others count up from it.
        batch: number of samples at once.
        precision: "no" (float32) or "bf16" in the models.
        prompts: prompts for pipelines, which take turns; by default classes as often as the real images have them.
        judge: scores how well a picture matches its prompt; see `matching.match`.
        within: asks for a recommendation; share by which a good enough distance may exceed the teacher's best.
        decided_by: everything else that the samples depend on, so that saved parts of others are not reused.
        facts: further entries of the receipt.

    Raises:
        ValueError: the data are latents or too few, or a model needs classes and the data have none.
    """
    if images.raw([0]).dtype != torch.uint8:
        raise ValueError("these data are latents; give images to compare with")
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
    """The entries of measure.json."""
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
    """A function that scores how well pictures match their prompts; None without a judge or prompts."""
    if judge is None or not prompts:
        return None
    return lambda pictures, rows: judge(pictures, in_turn(prompts, rows))


@dataclass(frozen=True)
class Telling:
    """Distinct conditions, and the row of them for each sample."""

    cond: Cond
    rows: Tensor

    def part(self, rows: slice) -> Cond:
        """The conditions of some samples."""
        return self.cond.part(self.rows[rows])


def told(
    setting: Setting, images: Samples, n: int, prompts: Sequence[str] | None, known: dict[Pipeline, Telling]
) -> Telling:
    """The conditions of `n` samples: classes, or those that a pipeline makes of classes or prompts, cached in `known`."""
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
    """The classes of the real images, in their order."""
    if not denoiser.takes:
        return NOTHING
    if images.label_range is None:
        raise ValueError("this model is conditional on classes, but the data have no labels; give labelled data")
    return labelled(torch.stack([images.cond(k % len(images))[CLASS] for k in range(n)]))
