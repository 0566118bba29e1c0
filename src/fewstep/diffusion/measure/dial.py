"""The dial: quality against network calls, every setting on the same seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.intervals import Estimate, jackknife
from ...core.nfe import count_nfe
from ..data import to_uint8
from ..denoiser import NetworkDenoiser
from ..samplers import Sampler, sample
from .features import extract
from .scores import Array, Coverage, Reference, coverage, frechet, kid


@dataclass(frozen=True)
class Setting:
    """A model and how to sample it: `name` is its line in the plot, `grid` its noise levels."""

    name: str
    denoiser: NetworkDenoiser
    sampler: Sampler
    grid: Tensor


@dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        name, sampler: of the setting.
        nfe: network calls a sample, counted at the network.
        n: number of samples.
        frechet, kid: distances to the reference with 95 % intervals.
        coverage: precision, recall, density, coverage against as many real images.
        seconds: spent sampling; images_per_second at that batch on that device.
        images: uint8, (n, C, H, W). features: (n, D).
    """

    name: str
    sampler: str
    nfe: float
    n: int
    frechet: Estimate
    kid: Estimate
    coverage: Coverage
    seconds: float
    device: str
    batch: int
    images: Tensor = field(repr=False)
    features: Array = field(repr=False)

    @property
    def images_per_second(self) -> float:
        return self.n / self.seconds

    def summary(self) -> dict[str, Any]:
        """What goes into a JSON: everything but the arrays."""
        return {
            "name": self.name,
            "sampler": self.sampler,
            "nfe": self.nfe,
            "n": self.n,
            "frechet": self.frechet._asdict(),
            "kid": self.kid._asdict(),
            **self.coverage._asdict(),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "device": self.device,
            "batch": self.batch,
        }


def score(
    setting: Setting,
    seeds: Sequence[int],
    shape: Sequence[int],
    network: nn.Module,
    real: Reference,
    *,
    batch: int = 250,
    precision: str = "no",
    **cond: Tensor,
) -> Point:
    """Samples `seeds`, rounds to uint8 and scores the features that `network` (an extractor) sees.

    Args:
        setting: what to measure.
        seeds: one a sample; the same for every setting that is to be compared.
        shape: of a sample, (C, H, W).
        network: the feature extractor.
        real: the reference; as many of its features as there are seeds serve precision, recall and KID.
        batch: samples at once.
        precision: "no" (float32) or "bf16" in the network.
        cond: passed to the denoiser, one row a seed.
    """
    if len(seeds) < 20:
        raise ValueError(f"a score with an interval needs at least 20 samples, got n = {len(seeds)}")
    if len(real.features) < 20:
        raise ValueError(f"a score needs at least 20 real images to compare with, got {len(real.features)}")
    device = next(setting.denoiser.network.parameters()).device
    start = time.perf_counter()
    with count_nfe(setting.denoiser.network) as nfe, torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
        x0 = sample(setting.denoiser.eval(), seeds, shape, setting.sampler, setting.grid, batch=batch, **cond)
    seconds = time.perf_counter() - start
    images = to_uint8(x0)
    features = extract(network, images)
    some_real = real.features[: len(seeds)]
    return Point(
        name=setting.name,
        sampler=getattr(setting.sampler, "__name__", str(setting.sampler)),
        nfe=nfe.rows / len(seeds),
        n=len(seeds),
        frechet=jackknife(lambda rows: frechet(features[rows], real), len(seeds)),
        kid=jackknife(lambda rows: kid(features[rows], some_real), len(seeds)),
        coverage=coverage(features, some_real),
        seconds=seconds,
        device=str(device),
        batch=batch,
        images=images,
        features=features,
    )


def difference(a: Point, b: Point, real: Reference) -> Estimate:
    """Fréchet distance of `a` minus that of `b`, paired: both on the same seeds."""
    assert a.n == b.n
    return jackknife(lambda rows: frechet(a.features[rows], real) - frechet(b.features[rows], real), a.n)


def ratio(a: Point, b: Point, real: Reference) -> Estimate:
    """Fréchet distance of `a` over that of `b`, paired: both on the same seeds."""
    assert a.n == b.n
    return jackknife(lambda rows: frechet(a.features[rows], real) / frechet(b.features[rows], real), a.n)


def recommend(points: Sequence[Point], real: Reference, *, within: float = 0.05) -> str:
    """One sentence: the fewest network calls whose quality is within a share of the best that `teacher` reaches."""
    if not within >= 0:
        raise ValueError(f"a tolerance is a share of 0 or more, got {within}")
    best = min((point for point in points if point.name == "teacher"), key=lambda point: point.frechet.value)
    reached = f"the teacher's best (Fréchet distance {best.frechet.value:.2f} at {best.nfe:.0f} calls)"
    goal = f"within {within:.0%} of {reached}"
    good = [point for point in points if point.frechet.value <= (1 + within) * best.frechet.value]
    chosen = min(good, key=lambda point: (point.nfe, point.frechet.value))
    if chosen is not best:
        return (
            f"The fewest calls {goal} are {chosen.nfe:.0f}, by {chosen.name}: {ratio(chosen, best, real)} times it (95 %)."
        )
    others = [point for point in points if point.nfe < best.nfe]
    if not others:
        return f"Nothing with fewer calls than {reached} was measured."
    near = min(others, key=lambda point: point.frechet.value)
    return (
        f"Nothing with fewer calls is {goal}; nearest is {near.name} at {near.nfe:.0f} calls, "
        f"{ratio(near, best, real)} times it (95 %)."
    )
