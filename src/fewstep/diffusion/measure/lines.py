"""The lines of a ledger. Each compares two checkpoints in pairs: same seeds, or same images and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist
from torch import Tensor

from ...core.intervals import Estimate, jackknife, jackknives
from ...core.ledger import GROUPS, Flags, Line, paired, scored, shares
from .dial import Looks, Point, difference
from .features import View
from .scores import Array, Coverage, covered, kid, met_by, mind, nearest, radii, vendi

NEAR = 0.05  # share of held-out real images that count as near to a training image
Numbers = NDArray[np.intp]
COMPARED = 5000  # samples at most in scores of all pairs, which are computed once per jackknife group
FEWEST = 20  # samples of a class or condition at least to score them alone


class Pair(NamedTuple):
    """Samples of the same seeds before and after, and the views of their scores; see `Point`."""

    before: Point
    after: Point
    views: Sequence[View]

    @property
    def first(self) -> View:
        return self.views[0]

    def seen(self, view: View | None = None) -> tuple[Array, Array]:
        """Features before and after, (n, D) each, by default in the first view."""
        name = (view or self.first).name
        return self.before.features[name], self.after.features[name]


def denoising(before: Array, after: Array, levels: Tensor, *, asked: bool) -> list[Line]:
    """One line per noise level, from errors (n, K) on the same images and noise."""
    return [
        replace(paired("denoising", f"error at σ = {level:.2g}", a, b, unit=float(a.mean()), asked=asked), level=level)
        for level, a, b in zip(levels.tolist(), before.T, after.T, strict=True)
    ]


def agreement(pair: Pair, as_few: Point) -> list[Line]:
    """Distances of samples from the teacher's samples of the same seeds, relative to those of other seeds.

    The teacher's samples are `pair.before`. "Before" is the teacher in as few calls, `as_few`.
    """
    name, own = pair.first.name, pair.before
    ends = {
        f"{Path(name).name} features": [point.features[name] for point in (own, as_few, pair.after)],
    }
    lines = []
    for what, (solution, few, after) in ends.items():
        other_seed = np.linalg.norm(solution - np.roll(solution, 1, 0), axis=1).mean()
        if other_seed > 0:
            apart = [np.linalg.norm(x - solution, axis=1) / other_seed for x in (few, after)]
            lines.append(paired("agreement", f"distance in {what}", *apart, unit=1.0))
    others = own.each.get("another", np.empty(0))  # computed while the pictures were in memory
    others = others[np.isfinite(others)]
    if others.any():
        apart = [point.each["apart"] / others.mean() for point in (as_few, pair.after)]
        lines.append(paired("agreement", "distance in pixels", *apart, unit=1.0))
    return lines


def quality(pair: Pair, group: str = "quality") -> list[Line]:
    """Fréchet and Monge Inception distances to the real images in each view."""
    lines = []
    for view in pair.views:
        name, n = Path(view.name).name, pair.after.n
        a, b = (point.frechet[view.name].value for point in pair[:2])
        lines.append(scored(group, f"Fréchet on {name}", a, b, difference(pair.after, pair.before, view), n, unit=a))
        ours, theirs = pair.seen(view)
        real = view.real.features[: len(ours)]
        a, b = mind(ours, real), mind(theirs, real)
        lines.append(scored(group, f"MIND on {name}", a, b, _minds(ours, theirs, real), n, unit=a))
    return lines


def _minds(ours: Array, theirs: Array, real: Array) -> Estimate:
    return jackknife(lambda rows: mind(theirs[rows], real) - mind(ours[rows], real), len(ours))


def variety(pair: Pair, groups: Numbers | None = None) -> list[Line]:
    """Precision, recall, density and coverage, and the Vendi score of samples of one condition.

    Args:
        pair: samples before and after.
        groups: integers (n,), equal for samples of one condition; by default all have the same.
    """
    ours, theirs = (features[:COMPARED] for features in pair.seen())
    groups = None if groups is None else groups[:COMPARED]
    real = pair.first.real.features[: len(ours)]
    of_real = radii(cdist(real, real))
    met = [(cdist(real, x), cdist(x, x)) for x in (ours, theirs)]

    def apart(rows: Numbers) -> Array:
        before, after = (covered(across[:, rows], of_real, within[np.ix_(rows, rows)]) for across, within in met)
        change: Array = np.subtract(after, before)
        return change

    whole = [covered(across, of_real, within) for across, within in met]
    found = dict(zip(Coverage._fields, jackknives(apart, len(ours)), strict=True))
    sides = (met_by(across, of_real, within) for across, within in met)
    for name, before, after in zip(("recall", "coverage"), *sides, strict=True):
        found[name] = _wider(found[name], np.subtract(after, before, dtype=float))
    lines = []
    for name, a, b, d in zip(whole[0]._fields, *whole, found.values(), strict=True):
        group = "quality" if name in ("precision", "density") else "variety"
        lines.append(scored(group, name, a, b, d, len(ours), unit=0.5, best=math.inf))
    kinds = np.zeros(len(ours), int) if groups is None else groups
    many = [kind for kind in np.unique(kinds) if (kinds == kind).sum() >= FEWEST]
    if many:

        def different(features: Array, rows: Numbers) -> float:
            return float(np.mean([vendi(features[rows[kinds[rows] == kind]]) for kind in many]))

        every = np.arange(len(ours))
        a, b = different(ours, every), different(theirs, every)
        change = jackknife(lambda rows: different(theirs, rows) - different(ours, rows), len(ours))
        lines.append(scored("variety", "Vendi, one condition", a, b, change, len(ours), unit=a, best=math.inf))
    return lines


def classes(pair: Pair, shown: Sequence[Numbers], real: Numbers, names: Sequence[str], *, free: bool) -> list[Line]:
    """The share of each class among the samples, and the kernel distance to real images of that class.

    Args:
        pair: samples before and after.
        shown: class of each sample before and after, (n,) each.
        real: class of each real image in the first view, (m,).
        names: names of class 0, 1, …
        free: whether the model chooses the class of a sample; otherwise there are no lines of shares.
    """
    ours, theirs = pair.seen()
    some = pair.first.real.features[: len(real)]
    lines, scores = list[Line](), list[Line]()
    for kind, name in enumerate(names):
        a, b = (x == kind for x in shown)
        share = float((real == kind).mean())
        if free and share:
            lines.append(shares("classes", f"share of {name}", a, b, unit=share, best=share))
        if min(a.sum(), b.sum(), (real == kind).sum()) >= FEWEST:
            theirs_real = some[real == kind]
            before, after = kid(ours[a], theirs_real), kid(theirs[b], theirs_real)
            change = _kids(ours, theirs, theirs_real, (a, b))
            scores.append(scored("classes", f"KID of {name}", before, after, change, len(ours), unit=abs(before)))
    return lines + scores


def _kids(ours: Array, theirs: Array, real: Array, chosen: tuple[Flags, Flags]) -> Estimate:
    """The difference of the kernel distances of the chosen samples after and before."""
    a, b = chosen
    return jackknife(lambda rows: kid(theirs[rows[b[rows]]], real) - kid(ours[rows[a[rows]]], real), len(ours))


def _wider(found: Estimate, of_each: Array) -> Estimate:
    """Widens an interval by the variance from the choice of real images, (m,), over which recall and coverage average."""
    beside = stats.t.ppf(0.975, GROUPS - 1) * of_each.std(ddof=1) / len(of_each) ** 0.5
    reach = math.hypot(found.high - found.value, beside)
    return Estimate(found.value, found.value - reach, found.value + reach)


def copying(pair: Pair, real: Array) -> tuple[Line, str]:
    """The share of samples nearer to a training image than 95 % of held-out real images are.

    Args:
        pair: samples before and after.
        real: features of the data (m, D). The last quarter, and at most as many as there are samples, is held out.

    Returns:
        The line, and a sentence with Fisher's exact test of the samples after against held-out images.
    """
    ours, theirs = pair.seen()
    held = min(len(ours), len(real) // 4)
    training, others = real[:-held], real[-held:]
    null = nearest(others, training)
    limit = np.quantile(null, NEAR)
    before, after = (nearest(x, training) < limit for x in (ours, theirs))
    line = shares("copying", "nearer to data than real", before, after, unit=0.5, best=0.0)
    hits, by_chance = int(after.sum()), int((null < limit).sum())
    table = [[hits, len(after) - hits], [by_chance, held - by_chance]]
    p = float(stats.fisher_exact(table, alternative="greater").pvalue)
    so = "so it copies" if p <= NEAR else "so nothing points to copying"
    return line, (
        f"Copying after the change: {hits} of {len(after)} samples, and {by_chance} of {held} real images that were "
        f"held out, lie very near to an image of the data, {so} (p = {p:.2g})."
    )


def matching(pair: Pair) -> Line:
    """The mean score of how well pictures match their prompts."""
    before, after = (point.each["match"] for point in pair[:2])
    return paired("prompts", "match", before, after, unit=float(before.mean()), best=math.inf)


def looks(pair: Pair, real: Looks) -> list[Line]:
    """Brightness, contrast, sharpness and saturation; best are the values of real images."""
    before, after = (point.each["looks"].T for point in pair[:2])
    lines = []
    for name, a, b, best in zip(Looks._fields, before, after, real, strict=True):
        if best or a.any() or b.any():  # grey images have no saturation
            lines.append(paired("looks", f"{name} (real {best:.3g})", a, b, unit=best or float(a.mean()), best=best))
    return lines


def apart(pictures: Sequence[Tensor]) -> list[dict[str, Array]]:
    """Distances of each model's pictures (B, C, H, W) to those of the first, and in the first to those of another seed.

    The distance to another seed is NaN in a batch of one picture.
    """
    first = pictures[0].flatten(1).double().numpy()
    found = [{"apart": np.linalg.norm(each.flatten(1).double().numpy() - first, axis=1)} for each in pictures]
    other = np.roll(first, 1, 0) if len(first) > 1 else np.full_like(first, np.nan)
    found[0]["another"] = np.linalg.norm(first - other, axis=1)
    return found


Shown = Callable[[Tensor], Tensor]


@torch.no_grad()
def shown(classify: Shown, images: Tensor, batch: int = 250) -> Numbers:
    """The classes (N,) of uint8 images (N, C, H, W) by a classifier."""
    found: Numbers = torch.cat([classify(part).argmax(1) for part in torch.split(images, batch)]).cpu().numpy()
    return found
