from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prdc import compute_prdc
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd
from vendi_score.vendi import score_dual

from fewstep.diffusion.measure import scores
from fewstep.diffusion.measure.scores import (
    Reference,
    coverage,
    covered,
    directions,
    frechet,
    kid,
    mind,
    nearest,
    radii,
    sliced,
    vendi,
)


def gaussian(n: int, d: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> np.ndarray:
    return mean + std * np.random.default_rng(seed).standard_normal((n, d))


def test_frechet_is_torchmetrics() -> None:
    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).float()

    samples, real = (torch.rand(300, 3, 2, 2, generator=torch.Generator().manual_seed(k)) ** (k + 1) for k in (0, 1))
    theirs = FrechetInceptionDistance(Pixels(), normalize=True, input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    theirs.update(samples, real=False)
    theirs.update(real, real=True)
    ours, reference = (x.flatten(1).double().numpy() for x in (samples, real))
    assert frechet(ours, Reference.of(reference)) == pytest.approx(float(theirs.compute()), rel=1e-5)


@given(m=st.floats(-3, 3), s=st.floats(0.1, 4))
def test_frechet_of_scaled_copies_is_known(m: float, s: float) -> None:
    """For y = m + s·x it is D·m'² + (1 − s)²·tr Σ exactly, whatever the sample (its mean enters m')."""
    x = gaussian(50, 3)
    shift = ((m + s * x).mean(0) - x.mean(0)) ** 2
    expected = shift.sum() + (1 - s) ** 2 * np.trace(np.cov(x, rowvar=False))
    assert frechet(m + s * x, Reference.of(x)) == pytest.approx(expected, abs=1e-6)


@given(cuts=st.lists(st.integers(1, 39), unique=True, max_size=6).map(sorted))
def test_a_reference_in_parts_is_that_of_the_whole(cuts: list[int]) -> None:
    """Far from 0 as well, where sums of squares lose what they are for."""
    x = gaussian(40, 3, mean=1e6)
    made = Reference.over(iter(np.split(x, cuts)))
    assert made.n == 40 and np.array_equal(made.features, x)
    assert np.allclose(made.mean, x.mean(0), rtol=1e-14)
    assert np.allclose(made.cov, np.cov(x, rowvar=False), rtol=1e-8)


def test_a_reference_keeps_the_first_features_and_counts_all(monkeypatch) -> None:
    x = gaussian(40, 3)
    monkeypatch.setattr(scores, "KEPT", 15)
    for size in (4, 15, 16, 40):
        made = Reference.over(x[start : start + size] for start in range(0, 40, size))
        assert np.array_equal(made.features, x[:15]) and np.allclose(made.cov, np.cov(x, rowvar=False))


def test_frechet_with_fewer_samples_than_features() -> None:
    """Features that are 0 everywhere change no distance, and make more features than samples of a few."""
    x, y = gaussian(10, 3), gaussian(60, 3, mean=0.5, std=2.0, seed=1)
    wide = [np.pad(each, ((0, 0), (0, 37))) for each in (x, y)]
    assert frechet(wide[0], Reference.of(wide[1])) == pytest.approx(frechet(x, Reference.of(y)))
    x = gaussian(10, 40)
    assert frechet(x, Reference.of(x)) == pytest.approx(0, abs=1e-6)


def test_kid_is_torchmetrics() -> None:
    x, y = gaussian(40, 6), gaussian(60, 6, mean=0.5, seed=1)[:40]
    assert kid(x, y) == pytest.approx(float(poly_mmd(torch.tensor(x), torch.tensor(y))))


def test_kid_has_no_bias() -> None:
    """The mean over many small draws from one distribution is zero within its error; a biased estimate is not."""
    draws = np.array([kid(gaussian(15, 4, seed=2 * k), gaussian(15, 4, seed=2 * k + 1)) for k in range(800)])
    assert abs(draws.mean()) < 3 * draws.std() / math.sqrt(len(draws))


def test_coverage_at_its_ends() -> None:
    x, far = gaussian(200, 4), gaussian(200, 4, mean=100, seed=1)
    same, nothing = coverage(x, x), coverage(far, x)
    assert same.precision == same.recall == same.coverage == 1
    assert nothing == (0, 0, 0, 0)


def test_coverage_tells_quality_from_variety() -> None:
    """Samples of one of two modes look real but meet half of the real data."""
    real = np.concatenate([gaussian(200, 4), gaussian(200, 4, mean=50, seed=1)])
    found = coverage(gaussian(200, 4, seed=2), real)
    assert found.precision > 0.8 and found.recall < 0.55 and 0.3 < found.coverage < 0.51


def test_coverage_is_that_of_its_authors(monkeypatch) -> None:
    """Of rows that are held against each other in parts, and from their distances alike."""
    monkeypatch.setattr(scores, "AT_ONCE", 70)
    samples, real = gaussian(150, 5, mean=0.6, std=0.8), gaussian(180, 5, seed=1)
    three, five = (compute_prdc(real, samples, nearest_k=k) for k in (3, 5))
    theirs = (three["precision"], three["recall"], five["density"], five["coverage"])
    assert len(set(theirs)) == 4 and all(0.05 < value < 0.97 for value in theirs)
    assert coverage(samples, real) == pytest.approx(theirs, rel=1e-12)
    distances = cdist(real, samples), radii(cdist(real, real)), cdist(samples, samples)
    assert covered(*distances) == pytest.approx(theirs, rel=1e-12)


def test_coverage_by_hand() -> None:
    """Six real points 0..5 on a line and samples at 0.5 and 9: the fifth neighbour of 0 is at 5."""
    real, samples = np.arange(6.0)[:, None], np.array([[0.5], [9.0], [9.1], [9.2], [9.3], [9.4]])
    found = coverage(samples, real)
    assert found.precision == pytest.approx(1 / 6)  # radii to the third neighbour are 3, 2, 2, 2, 2, 3: 9 is out of reach
    assert found.coverage == 1  # each real point has a ball of radius 3 to 5 that holds 0.5
    assert found.density == pytest.approx((6 + 5) / (6 * 5))  # all six hold 0.5; that of the point 5 holds the others too


@given(n=st.integers(1, 40), m=st.integers(1, 40))
def test_sliced_is_scipys_along_each_direction(n: int, m: int) -> None:
    x, y, along = gaussian(n, 5), gaussian(m, 5, mean=0.5, std=2, seed=1), directions(5, 7)
    assert np.allclose(np.linalg.norm(along, axis=0), 1)
    theirs = [wasserstein_distance(x @ direction, y @ direction) for direction in along.T]
    assert sliced(x, y, 7) == pytest.approx(np.mean(theirs), rel=1e-9)


def test_sliced_of_a_shift_is_known() -> None:
    """Whatever the sample, a shift by δ is |δ·θ| along θ, whose mean is |δ|·Γ(D/2)/(√π·Γ((D + 1)/2)): 3/8 for D = 5.

    A Fréchet distance sees no difference between a Gaussian and two points with its mean and covariance; this one does: it
    is the mean of ||z| − 1|, 4·φ(1) − 2·φ(0) + 4·Φ(1) − 3 = .535.
    """
    x = gaussian(30, 5)
    shift = np.array([0.0, 3.0, 0.0, -4.0, 0.0])
    assert sliced(x, x) == 0
    assert sliced(x + shift, x, 20_000) == pytest.approx(5 * 3 / 8, rel=0.02)
    one = gaussian(4000, 1)
    points = one.mean() + one.std(ddof=1) * np.repeat([-1.0, 1.0], 2000)[:, None] * math.sqrt(3999 / 4000)
    assert np.allclose([points.mean(), points.var(ddof=1)], [one.mean(), one.var(ddof=1)])
    assert sliced(points, one) == pytest.approx(0.535, abs=0.03)


def test_mind_is_that_of_the_paper() -> None:
    """3·D times the mean over directions of the mean square between sorted projections, at equal numbers."""
    ours, real = gaussian(50, 6, std=2, seed=1), gaussian(50, 6, mean=0.3, seed=2)
    along = directions(6, 128)
    expected = 18 * ((np.sort(ours @ along, 0) - np.sort(real @ along, 0)) ** 2).mean()
    assert mind(ours, real) == pytest.approx(expected)
    assert mind(np.repeat(ours, 3, 0), real) == pytest.approx(expected)  # the same distribution of more samples


def test_mind_of_a_shift_is_three_times_its_square() -> None:
    """Each direction sees (u·s)², whose mean over directions is |s|²/D: Fréchet's distance of a shift, times 3."""
    x, shift = gaussian(40, 5), np.array([2.0, 0, 0, 1, 0])
    assert mind(x + shift, x, count=20_000) == pytest.approx(3 * 5, rel=0.03)


@pytest.mark.parametrize("n", [4, 30])
def test_vendi_is_the_number_of_different_ones(n: int) -> None:
    """m orthogonal ones, as often as each other, are m; in the rows' matrix and in the columns' alike."""
    apart = np.eye(8)[np.arange(n) % 4] * np.arange(1, n + 1)[:, None]
    assert vendi(apart) == pytest.approx(4, rel=0.01)
    assert vendi(gaussian(n, 8)) == pytest.approx(score_dual(gaussian(n, 8)))  # that of the paper's authors


def test_the_nearest_is_found_in_parts() -> None:
    x, y = gaussian(23, 4), gaussian(9, 4, seed=3)
    expected = np.linalg.norm(x[:, None] - y, axis=2).min(1)
    assert np.allclose(nearest(x, y, batch=5), expected) and np.allclose(nearest(y, y), 0)
