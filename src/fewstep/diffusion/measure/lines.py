"""The lines of a ledger: each compares two checkpoints by pairs, the same seeds or the same images with the same noise."""

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

NEAR = 0.05  # share of real images that count as near to a training image
Numbers = NDArray[np.intp]
COMPARED = 5000  # samples at most that are held each against each, once for each group that is left out
FEWEST = 20  # samples of a class, or of a condition, that are scored by themselves


class Pair(NamedTuple):
    """Samples of the same seeds before and after, with the views they are scored in; see `Point`."""

    before: Point
    after: Point
    views: Sequence[View]

    @property
    def first(self) -> View:
        return self.views[0]

    def seen(self, view: View | None = None) -> tuple[Array, Array]:
        """Features before and after, (n, D) each, in the first view unless told otherwise."""
        name = (view or self.first).name
        return self.before.features[name], self.after.features[name]


def denoising(before: Array, after: Array, levels: Tensor, *, asked: bool) -> list[Line]:
    """A line a noise level, of errors (n, K) from the same images and noise."""
    return [
        replace(paired("denoising", f"error at σ = {level:.2g}", a, b, unit=float(a.mean()), asked=asked), level=level)
        for level, a, b in zip(levels.tolist(), before.T, after.T, strict=True)
    ]


def agreement(pair: Pair, as_few: Point) -> list[Line]:
    """How far samples are from the teacher's own solution of the same noise, 1 being as far as another seed's.

    Before is the teacher itself in as few calls, `as_few`; its own solution are the samples of `pair.before`.
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
    others = own.each.get("another", np.empty(0))  # told when the pictures were there
    others = others[np.isfinite(others)]
    if others.any():
        apart = [point.each["apart"] / others.mean() for point in (as_few, pair.after)]
        lines.append(paired("agreement", "distance in pixels", *apart, unit=1.0))
    return lines


def quality(pair: Pair, group: str = "quality") -> list[Line]:
    """Fréchet and Monge distances to the real images in each view."""
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
    """Precision, recall, density and coverage; and how many different samples there are of one condition.

    Args:
        pair: of points.
        groups: which samples have the same condition, (n,) integers; all have it if left out.
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
    """Of each class its share of the samples, and the kernel distance to the real ones of that class.

    Args:
        pair: of points.
        shown: the class of each sample before and after, (n,) each.
        real: that of each real image in the first view, (m,).
        names: of class 0, 1, …
        free: whether the model chooses the class of a sample; if it is asked for one, shares say nothing.
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
    """The difference of the kernel distances of those that are chosen on either side."""
    a, b = chosen
    return jackknife(lambda rows: kid(theirs[rows[b[rows]]], real) - kid(ours[rows[a[rows]]], real), len(ours))


def _wider(found: Estimate, of_each: Array) -> Estimate:
    """The interval with what comes of the choice of real images, (m,), of which recall and coverage are shares."""
    beside = stats.t.ppf(0.975, GROUPS - 1) * of_each.std(ddof=1) / len(of_each) ** 0.5
    reach = math.hypot(found.high - found.value, beside)
    return Estimate(found.value, found.value - reach, found.value + reach)


def copying(pair: Pair, real: Array) -> tuple[Line, str]:
    """The share of samples that are nearer to a training image than all but 5 % of real held-out images are.

    Args:
        pair: of points.
        real: features of the data (m, D); the last ones, at most as many as there are samples, are held out.

    Returns:
        The line, and what held-out images say of the samples after: Fisher's exact test against them.
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
    more = "more than" if p <= NEAR else "no more than chance beyond"
    return line, (
        f"Copying after the change: {hits / len(after):.1%} of the samples are so near to an image of the data as "
        f"{by_chance / held:.1%} of {held} held-out real images are, {more} these (p = {p:.2g})."
    )


def matching(pair: Pair) -> Line:
    """How well pictures show what their prompts ask for, one each."""
    before, after = (point.each["match"] for point in pair[:2])
    return paired("prompts", "match", before, after, unit=float(before.mean()), best=math.inf)


def looks(pair: Pair, real: Looks) -> list[Line]:
    """Brightness, contrast, sharpness and saturation, best where those of the real images are."""
    before, after = (point.each["looks"].T for point in pair[:2])
    lines = []
    for name, a, b, best in zip(Looks._fields, before, after, real, strict=True):
        if best or a.any() or b.any():  # grey images have no saturation
            lines.append(paired("looks", f"{name} (real {best:.3g})", a, b, unit=best or float(a.mean()), best=best))
    return lines


def apart(pictures: Sequence[Tensor]) -> list[dict[str, Array]]:
    """How far the pictures (B, C, H, W) of each model are from those of the first, and in the first from another seed's.

    A picture that is alone in its batch has no other: not a number.
    """
    first = pictures[0].flatten(1).double().numpy()
    found = [{"apart": np.linalg.norm(each.flatten(1).double().numpy() - first, axis=1)} for each in pictures]
    other = np.roll(first, 1, 0) if len(first) > 1 else np.full_like(first, np.nan)
    found[0]["another"] = np.linalg.norm(first - other, axis=1)
    return found


Shown = Callable[[Tensor], Tensor]


@torch.no_grad()
def shown(classify: Shown, images: Tensor, batch: int = 250) -> Numbers:
    """The class that a classifier sees in each uint8 image (N, C, H, W), (N,)."""
    found: Numbers = torch.cat([classify(part).argmax(1) for part in torch.split(images, batch)]).cpu().numpy()
    return found
