"""The dial: quality against network calls, with the same seeds for all settings and in several representations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.intervals import Estimate, jackknife
from ...core.progress import SHORT
from ...core.words import counted
from ..cond import NOTHING, Cond
from ..data import Samples
from .features import View, in_parts
from .scores import Array, Coverage, coverage, frechet, kid, sliced
from .seen import FEATURES, Matching, Seen, Setting, Told, sampled

logger = logging.getLogger(__name__)

COMPARED = 10_000  # samples and real images at most for scores of all pairs


class Looks(NamedTuple):
    """Simple statistics of images, in grey levels of 0 to 255, averaged over images.

    Attributes:
        grey: mean brightness.
        contrast: standard deviation within an image.
        sharpness: mean difference between neighbouring pixels.
        saturation: mean difference of a pixel's largest and smallest channel; 0 for grey images.
    """

    grey: float
    contrast: float
    sharpness: float
    saturation: float

    @classmethod
    def of(cls, images: Tensor) -> Looks:
        """The mean looks of uint8 images (N, C, H, W)."""
        return cls(*map(float, cls.each(images).mean(0)))

    @staticmethod
    def each(images: Tensor) -> Tensor:
        """The looks of each uint8 image (N, C, H, W), (N, 4)."""
        pixels = images.float()
        steps = [pixels.diff(dim=axis).abs().flatten(1).mean(1) for axis in (-1, -2)]
        colour = (pixels.amax(1) - pixels.amin(1)).flatten(1).mean(1)
        flat = pixels.flatten(1)
        return torch.stack([flat.mean(1), flat.std(1), (steps[0] + steps[1]) / 2, colour], 1)

    @classmethod
    def over(cls, images: Samples) -> Looks:
        """The mean looks of the first 10,000 images of a data set."""
        count = min(10_000, len(images))
        seen = torch.cat([cls.each(part) for part in in_parts(images, count)])
        return cls(*map(float, seen.mean(0)))


@dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        name, sampler: name and sampler of the setting.
        nfe: network calls per sample, as counted at the network.
        n: number of samples.
        frechet: Fréchet distance to the real images with its 95 % interval, by view.
        sliced: sliced Wasserstein distance to as many real images, by view.
        kid, coverage: kernel distance, and precision, recall, density and coverage, of the first 10,000 samples against as
            many real images in the first view.
        looks: mean grey, contrast, sharpness and saturation.
        seconds: time of sampling, summed over all processes.
        device, batch: where and in which batches they were sampled.
        images: the first pictures, uint8 (at most 64, C, H, W).
        features: features (n, D) by view.
        match: mean score of how well pictures match their prompts; None without a judge.
        each: further values of every sample by name, (n, *).
    """

    name: str
    sampler: str
    nfe: float
    n: int
    frechet: dict[str, Estimate]
    sliced: dict[str, Estimate]
    kid: Estimate
    coverage: Coverage
    looks: Looks
    seconds: float
    device: str
    batch: int
    images: Tensor = field(repr=False)
    features: dict[str, Array] = field(repr=False)
    match: Estimate | None = None
    each: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def without_arrays(self) -> Point:
        """The point without arrays."""
        return replace(self, images=self.images[:0], features={}, each={})

    @property
    def images_per_second(self) -> float:
        return self.n / self.seconds

    def summary(self) -> dict[str, Any]:
        """The entries for a JSON: everything but the arrays."""
        return {
            "name": self.name,
            "sampler": self.sampler,
            "nfe": self.nfe,
            "n": self.n,
            "frechet": {name: distance._asdict() for name, distance in self.frechet.items()},
            "sliced": {name: distance._asdict() for name, distance in self.sliced.items()},
            "kid": self.kid._asdict(),
            **self.coverage._asdict(),
            **self.looks._asdict(),
            **({} if self.match is None else {"match": self.match._asdict()}),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "device": self.device,
            "batch": self.batch,
        }


def score(
    setting: Setting,
    seeds: Sequence[int],
    views: Sequence[View],
    *,
    batch: int = 250,
    precision: str = "no",
    cond: Cond = NOTHING,
    match: Matching | None = None,
) -> Point:
    """Samples `seeds`, rounds to uint8 and scores the samples in the `views`.

    Args:
        setting: model and sampler.
        seeds: one per sample; use the same for all settings to compare.
        views: representations, at least two (`features.views`). Precision, recall, KID and the sliced distance use as
            many real images as there are seeds.
        batch: number of samples at once.
        precision: "no" (float32) or "bf16" in the network.
        cond: conditions, one row per seed.
        match: scores (B,) of how well images (B, C, H, W), given with their numbers, match their prompts.

    Raises:
        ValueError: there are fewer than 20 samples or real images.
    """
    return scores([setting], seeds, views, batch=batch, precision=precision, cond=lambda _: cond, match=match)[0]


def scores(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    views: Sequence[View],
    *,
    batch: int = 250,
    precision: str = "no",
    cond: Callable[[Setting], Told] = lambda setting: NOTHING,
    match: Matching | None = None,
) -> list[Point]:
    """One point per setting on the same seeds; see `score`. `cond` returns the conditions of a setting."""
    check_enough(len(seeds), len(views[0].real.features))
    networks = {view.name: view.network for view in views}
    made = sampled(
        [[setting] for setting in settings], seeds, networks, batch=batch, precision=precision, cond=cond, match=match,
        looks=Looks.each,
    )  # fmt: skip
    with made as seen:
        return [scored(setting, seen(k, 0), views, batch=batch) for k, setting in enumerate(settings)]


def check_enough(n: int, real: int) -> None:
    """Raises ValueError if there are too few samples or real images for scores with intervals."""
    if n < 20:
        raise ValueError(f"a score with an interval needs at least 20 samples, got n = {n}")
    if real < 20:
        raise ValueError(f"a score needs at least 20 real images to compare with, got {real}")


def scored(setting: Setting, seen: Seen, views: Sequence[View], *, batch: int) -> Point:
    """The point of a setting from the statistics of its samples."""
    features, first = seen.features, views[0]
    n, device = len(seen.each["looks"]), str(setting.denoiser.device)
    some, some_real = features[first.name][:COMPARED], first.real.features[: min(n, COMPARED)]
    point = Point(
        name=setting.name,
        sampler=type(setting.walk).__name__,
        nfe=seen.rows / n,
        n=n,
        frechet={view.name: _distance(features[view.name], view) for view in views},
        sliced={view.name: _sliced(features[view.name], view) for view in views},
        kid=jackknife(lambda rows: kid(some[rows], some_real), len(some)),
        coverage=coverage(some, some_real),
        looks=Looks(*map(float, seen.each["looks"].mean(0))),
        seconds=seen.seconds,
        device=device,
        batch=batch,
        images=seen.images,
        features=features,
        match=_mean(seen.each["match"]) if "match" in seen.each else None,
        each={name: value for name, value in seen.each.items() if not name.startswith(FEATURES)},
    )
    if point.seconds > SHORT:  # otherwise the table follows soon
        found = ", ".join(f"{distance} ({name})" for name, distance in point.frechet.items())
        logger.info("%s, %s: Fréchet distance %s", setting.name, counted(point.nfe, "call"), found)
    return point


def _mean(values: Array) -> Estimate:
    return jackknife(lambda rows: float(values[rows].mean()), len(values))


def _distance(features: Array, view: View) -> Estimate:
    return jackknife(lambda rows: frechet(features[rows], view.real), len(features))


def _sliced(features: Array, view: View) -> Estimate:
    real = view.real.features[: len(features)]
    return jackknife(lambda rows: sliced(features[rows], real), len(features))


def difference(a: Point, b: Point, view: View) -> Estimate:
    """Fréchet distance of `a` minus that of `b`, paired over the same seeds."""
    assert a.n == b.n
    ours, theirs = a.features[view.name], b.features[view.name]
    return jackknife(lambda rows: frechet(ours[rows], view.real) - frechet(theirs[rows], view.real), a.n)


def ratio(a: Point, b: Point, view: View) -> Estimate:
    """Fréchet distance of `a` over that of `b`, paired over the same seeds."""
    assert a.n == b.n
    ours, theirs = a.features[view.name], b.features[view.name]
    return jackknife(lambda rows: frechet(ours[rows], view.real) / frechet(theirs[rows], view.real), a.n)


class Recommended(NamedTuple):
    """The recommended point and why; the nearest point if none is good enough."""

    point: Point
    sentence: str


def recommend(points: Sequence[Point], views: Sequence[View], *, within: float = 0.05) -> Recommended:
    """The point of fewest network calls whose distance exceeds the teacher's best by at most the share `within`.

    The teacher's best is that in the first view; the condition must hold in every view.
    """
    if not within >= 0:
        raise ValueError(f"within must be 0 or more, got {within}")
    main = views[0].name
    best = min((point for point in points if point.name == "teacher"), key=lambda point: point.frechet[main].value)

    def behind(point: Point) -> float:
        """The ratio to the best distance, in the view in which it is largest."""
        return max(point.frechet[view.name].value / best.frechet[view.name].value for view in views)

    def times(point: Point) -> str:
        return " and ".join(f"{ratio(point, best, view)} times it on {view.name} features" for view in views) + " (95 %)"

    figure = f"Fréchet distance {best.frechet[main].value:.2f} on {main} features"
    reached = f"the teacher's best ({figure}, {counted(best.nfe, 'call')})"
    goal = f"within {within:.0%} of {reached}"
    chosen = min((point for point in points if behind(point) <= 1 + within), key=lambda p: (p.nfe, behind(p)))
    if chosen is not best:
        where = f"{chosen.name} at {counted(chosen.nfe, 'call')}"
        return Recommended(chosen, f"The setting of fewest calls {goal} is {where}: {times(chosen)}.")
    others = [point for point in points if point.nfe < best.nfe]
    if not others:
        return Recommended(best, f"Nothing with fewer calls than {reached} was measured.")
    near = min(others, key=behind)
    where = f"{near.name} at {counted(near.nfe, 'call')}"
    return Recommended(near, f"Nothing with fewer calls is {goal}; nearest is {where}, {times(near)}.")
