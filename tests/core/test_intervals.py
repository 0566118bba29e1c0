"""Intervals against textbooks, exact inversions and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom

from fewstep.core.intervals import (
    Estimate,
    chance_of_none,
    gap_closed,
    holm,
    jackknife,
    jackknives,
    mean_difference,
    share,
    share_difference,
    upper_bound,
)
from fewstep.diffusion.measure.scores import Reference, frechet


def gaussian(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim))


def test_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    x = gaussian(50, 1)[:, 0]
    found = jackknife(lambda rows: float(x[rows].mean()), 50, groups=50)
    reach = 2.0095752 * x.std(ddof=1) / math.sqrt(50)  # t of 49 degrees of freedom
    assert found == pytest.approx((x.mean(), x.mean() - reach, x.mean() + reach))


def test_jackknife_interval_covers() -> None:
    """Over many draws about 95 % of the intervals of a variance hold the truth."""
    hits = 0
    for seed in range(300):
        x = gaussian(200, 1, seed=seed)[:, 0]
        low, high = jackknife(lambda rows, x=x: float(x[rows].var(ddof=1)), 200)[1:]
        hits += low <= 1 <= high
    assert 0.90 < hits / 300 < 0.985


def test_paired_difference_is_tighter_than_its_parts() -> None:
    x = gaussian(400, 3)
    real, y = Reference.of(gaussian(400, 3, seed=9)), x + 0.5 + 0.05 * gaussian(400, 3, seed=5)
    paired = jackknife(lambda rows: frechet(y[rows], real) - frechet(x[rows], real), 400)
    alone = jackknife(lambda rows: frechet(y[rows], real), 400)
    assert paired.low > 0
    assert paired.high - paired.low < alone.high - alone.low


def test_jackknife_refuses_impossible_groups() -> None:
    with pytest.raises(ValueError, match="groups"):
        jackknife(lambda rows: 0.0, 5, groups=20)


def test_the_gap_that_was_closed() -> None:
    rng = np.random.default_rng(0)
    base, tuned = rng.random(400) < 0.1, rng.random(400) < 0.6
    proxy = np.where(rng.random(400) < 0.8, tuned, base)
    found = gap_closed(base, proxy, tuned)
    assert found.value == pytest.approx((proxy.mean() - base.mean()) / (tuned.mean() - base.mean()))
    for edge in (found.low, found.high):  # the edge is just as far from the data as the test allows
        rest = (proxy.astype(float) - base) - edge * (tuned.astype(float) - base)
        assert stats.ttest_1samp(rest, 0.0).pvalue == pytest.approx(0.05, abs=1e-6)

    def share(a, b, c, axis) -> np.ndarray:
        return (b.mean(axis) - a.mean(axis)) / (c.mean(axis) - a.mean(axis))

    data = tuple(scores.astype(float) for scores in (base, proxy, tuned))
    drawn = stats.bootstrap(data, share, paired=True, vectorized=True, n_resamples=2000, rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.02)


def test_gaps_that_tell_nothing() -> None:
    same = gap_closed([0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 1])
    assert same.value == 0
    assert (same.low, same.high) == (-np.inf, np.inf)
    with pytest.raises(ValueError, match="no gap to close"):
        gap_closed([0, 1], [1, 1], [1, 0])
    with pytest.raises(ValueError, match="the same items"):
        gap_closed([0, 1], [1, 1], [1, 0, 1])
    exact = gap_closed([0, 0, 1], [2, 4, 4], [4, 8, 7])
    assert exact == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 40), (19, 20)])
def test_the_upper_bound_is_clopper_pearsons(k: int, n: int) -> None:
    assert binom.cdf(k, n, upper_bound(k, n, 0.05)) == pytest.approx(0.05)
    assert upper_bound(n, n, 0.05) == 1


def test_a_share_has_its_exact_interval() -> None:
    value, low, high = share([1] * 7 + [0] * 13)
    assert value == pytest.approx(0.35)
    assert binom.sf(6, 20, low) == pytest.approx(0.025)
    assert binom.cdf(7, 20, high) == pytest.approx(0.025)
    assert share(np.zeros(10)) == pytest.approx((0, 0, 1 - 0.025**0.1))
    assert share(np.ones(10)).high == 1


def test_paired_means_have_students_interval() -> None:
    paired = mean_difference([1.0, 1, 0, 1], [0.0, 1, 0, 0])
    assert paired == pytest.approx((0.5, 0.5 - 3.1824 * 3**-0.5 / 2, 0.5 + 3.1824 * 3**-0.5 / 2), rel=1e-4)


def test_differences_of_shares_have_tangos_interval() -> None:
    z2 = 3.841458820694124
    assert share_difference(0, 0, 200)[1:] == pytest.approx((-z2 / (200 + z2), z2 / (200 + z2)), abs=1e-6)
    value, low, high = share_difference(3, 9, 100)
    assert value == pytest.approx(-0.06)
    assert share_difference(9, 3, 100) == pytest.approx((-value, -high, -low))
    assert low < -0.06 < high
    rng, n, covered = np.random.default_rng(0), 150, 0
    for gained, lost, _ in rng.multinomial(n, [0.04, 0.08, 0.88], size=1000):
        _, low, high = share_difference(int(gained), int(lost), n)
        covered += low <= -0.04 <= high
    assert 0.93 < covered / 1000 < 0.98


def test_several_statistics_have_the_intervals_that_each_has_alone() -> None:
    x = gaussian(60, 2)
    both = jackknives(lambda rows: x[rows].std(0), 60)
    for k, found in enumerate(both):
        assert found == pytest.approx(jackknife(lambda rows, k=k: float(x[rows, k].std()), 60))


def test_the_chance_of_no_difference_is_students() -> None:
    a, b = gaussian(30, 2).T
    found = mean_difference(a, b)
    assert chance_of_none(found, 29) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert (chance_of_none(mean_difference(a, a), 29), chance_of_none(Estimate(1, 1, 1), 29)) == (1, 0)


def test_holm_is_the_textbook_procedure() -> None:
    """Step down: the smallest times m, the next times m − 1, none below its predecessor."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    drawn = np.random.default_rng(0).random((2000, 20))
    wrong = np.mean([(holm(p) <= 0.05).any() for p in drawn])
    assert 0.035 < wrong < 0.065  # of families in which nothing is there to be found
