"""Intervals, 95 % unless a function says otherwise: how sure a figure is. One place for every wing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def jackknife(statistic: Callable[[NDArray[np.intp]], float], n: int, groups: int = 20) -> Estimate:
    """A statistic of `n` samples with a 95 % interval by the delete-a-group jackknife; see `jackknives`."""
    return jackknives(lambda rows: [statistic(rows)], n, groups)[0]


def jackknives(statistics: Callable[[NDArray[np.intp]], ArrayLike], n: int, groups: int = 20) -> list[Estimate]:
    """Statistics of `n` samples with 95 % intervals by the delete-a-group jackknife.

    Unlike the bootstrap it repeats no sample, which a Fréchet distance would see as missing variety. For a paired
    comparison pass the difference of two scores on the same rows.

    Args:
        statistics: takes the rows to use, an index array, and returns one or several numbers.
        n: number of samples.
        groups: how many groups are left out in turn, 2 to n.

    Returns:
        Each statistic of all rows, with value ± t·standard error, t of groups − 1 degrees of freedom.

    Reference: Shao and Tu 1995, The Jackknife and Bootstrap.
    """
    return jackknifed(statistics(np.arange(n)), left_out(statistics, n, groups))


def left_out(statistics: Callable[[NDArray[np.intp]], ArrayLike], n: int, groups: int = 20) -> NDArray[np.float64]:
    """The statistics of `n` samples without each of the groups in turn, (groups, their number); see `jackknives`.

    Sample k is in group k modulo `groups`. So two scores on the same seeds are paired: their difference has its own
    interval.

    Raises:
        ValueError: `groups` is not 2 to n.
    """
    if not 2 <= groups <= n:
        raise ValueError(f"a jackknife of {n} samples needs 2 to {n} groups, got {groups}")
    rows = np.arange(n)
    return np.array([statistics(rows[rows % groups != group]) for group in range(groups)], np.float64)


def jackknifed(values: ArrayLike, without: ArrayLike) -> list[Estimate]:
    """Statistics (K,) with 95 % intervals, from their values without each group, (groups, K); see `jackknives`."""
    kept = np.asarray(without, np.float64)
    groups = len(kept)
    error = np.sqrt((groups - 1) / groups * ((kept - kept.mean(0)) ** 2).sum(0))
    each, reach = np.asarray(values), stats.t.ppf(0.975, groups - 1) * error
    return [Estimate(float(v), float(v - r), float(v + r)) for v, r in zip(each, reach, strict=True)]


def chance_of_none(difference: Estimate, freedom: int) -> float:
    """p-value of "there is no difference", for an estimate with a Student interval of `freedom` degrees of freedom."""
    reach = difference.high - difference.value
    if reach <= 0:
        return float(difference.value == 0)
    return float(2 * stats.t.sf(abs(difference.value) / reach * stats.t.ppf(0.975, freedom), freedom))


def holm(chances: ArrayLike) -> NDArray[np.float64]:
    """Adjusts p-values of several tests: the chance of any false rejection at level α is at most α, however they depend.

    Reference: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    p = np.asarray(chances, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]).clip(max=1)
    return adjusted


def share(right: ArrayLike) -> Estimate:
    """The share of ones among (N,) zeros and ones, with its exact interval.

    Reference: Clopper and Pearson 1934, The Use of Confidence or Fiducial Limits.
    """
    hits = np.asarray(right, np.float64)
    low, high = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="exact")
    return Estimate(float(hits.mean()), float(low), float(high))


def upper_bound(k: int, n: int, delta: float) -> float:
    """The largest share p with P(Binomial(n, p) ≤ k) ≥ delta (Clopper and Pearson, one-sided)."""
    return 1.0 if k == n else float(stats.beta.ppf(1 - delta, k + 1, n - k))


def mean_difference(scores: ArrayLike, than: ArrayLike) -> Estimate:
    """Mean of paired differences of (N,) scores, with Student's interval."""
    differences = np.asarray(scores, np.float64) - np.asarray(than, np.float64)
    mean = float(differences.mean())
    if np.ptp(differences) <= 1e-12 * abs(mean):  # equal up to rounding
        return Estimate(mean, mean, mean)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return Estimate(mean, float(low), float(high))


def share_difference(gained: int, lost: int, n: int) -> Estimate:
    """The difference of two shares of the same `n` items: `gained` only one side gets right, `lost` only the other.

    Reference: Tango 1998, Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design.
    """
    z = 1.959963984540054

    def score(delta: float) -> float:
        a, b = 2 * n, -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        other = ((b * b - 4 * a * c) ** 0.5 - b) / (2 * a)  # share that only the other side gets right, if delta is true
        deviation = n * (2 * other + delta * (1 - delta))
        return float((gained - lost - n * delta) / deviation**0.5) if deviation > 0 else 0.0

    middle, edge = (gained - lost) / n, 1 - 1e-9
    low = -1.0 if score(-edge) < z else optimize.brentq(lambda d: score(d) - z, -edge, middle)
    high = 1.0 if score(edge) > -z else optimize.brentq(lambda d: score(d) + z, middle, edge)
    return Estimate(middle, float(low), float(high))


def gap_closed(base: ArrayLike, proxy: ArrayLike, tuned: ArrayLike) -> Estimate:
    """(proxy − base)/(tuned − base), the share of the way to the directly tuned model, with a paired 95 % interval.

    The interval holds each share θ for which the mean of (proxy − base) − θ·(tuned − base) over the items is not
    significantly different from 0. Where tuning itself made no significant difference it is unbounded, −∞ to ∞.

    Args:
        base, proxy, tuned: scores of the same items in the same order, (N,) each, such as 1 for right and 0 for wrong.

    Raises:
        ValueError: if the scores are not paired, or tuned and base have the same mean.

    Reference: Fieller 1954, Some Problems in Interval Estimation.
    """
    scores = [np.asarray(values, np.float64) for values in (base, proxy, tuned)]
    if len({values.shape for values in scores}) != 1 or scores[0].ndim != 1 or len(scores[0]) < 2:
        raise ValueError(
            f"the three need scores of the same items, at least two; got {[values.shape for values in scores]}"
        )
    ours, full = scores[1] - scores[0], scores[2] - scores[0]
    a, b, n = ours.mean(), full.mean(), len(ours)
    if b == 0:
        raise ValueError("the tuned model and the base score the same on these items, so there is no gap to close")
    reach = stats.t.ppf(0.975, n - 1) ** 2 / n
    (aa, ab), (_, bb) = np.cov(ours, full)
    # θ is inside where (a − θb)² <= reach·(aa − 2θ·ab + θ²·bb): between the roots of a parabola in θ
    square, half, constant = b * b - reach * bb, a * b - reach * ab, a * a - reach * aa
    value = float(a / b)
    if square <= 0:
        return Estimate(value, -np.inf, np.inf)
    root = np.sqrt(max(half * half - square * constant, 0.0))
    return Estimate(value, float((half - root) / square), float((half + root) / square))
