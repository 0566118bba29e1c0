"""Scores on feature vectors. Features are float arrays (N, D), a row a sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
AT_ONCE = 1000  # rows that are held against all others
KEPT = 50_000  # features of real samples, for scores that hold single ones against each other


@dataclass(frozen=True, eq=False)
class Reference:
    """What real data looks like: mean (D,) and covariance (D, D) over `n` samples, and the first real features (M, D)."""

    mean: Array
    cov: Array
    n: int
    features: Array

    @classmethod
    def of(cls, features: Array) -> Reference:
        """The reference that these features are."""
        return cls.over([features])

    @classmethod
    def over(cls, parts: Iterable[Array]) -> Reference:
        """The reference that parts of features (m, D) are, one after another; no more than the first `KEPT` stay in memory.

        Reference: Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance, eq. 2.1.
        """
        count, mean, scatter, kept = 0, np.zeros(1), np.zeros((1, 1)), list[Array]()
        for part in parts:
            own = part.mean(0, dtype=np.float64)
            apart, centred = own - mean, part - own
            share = len(part) / (count + len(part))
            scatter = scatter + centred.T @ centred + np.outer(apart, apart) * count * share
            mean = mean + apart * share
            count += len(part)
            kept.append(part[: max(0, KEPT - count + len(part))])
        return cls(mean, scatter / max(count - 1, 1), count, np.concatenate(kept))

    @cached_property
    def root(self) -> Array:
        """The symmetric root of the covariance, (D, D)."""
        return _root(self.cov)


def frechet(features: Array, reference: Reference) -> float:
    """Fréchet distance between Gaussians: |μ − μ_r|² + tr(Σ + Σ_r − 2(Σ Σ_r)^½).

    Its bias grows as 1/n: two values compare at the same number of samples only. With Inception features it is the FID.

    Reference: Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, eq. 6.
    """
    mean, (n, d) = features.mean(0), features.shape
    spread = (features - mean) / np.sqrt(n - 1)
    # tr (Σ Σ_r)^½ is the sum of the singular values of A Σ_r^½ for every A with AᵀA = Σ: stable where a covariance has no
    # full rank. The samples themselves are such an A, and the smaller one where they are fewer than features.
    root = spread if n < d else _root(spread.T @ spread)
    cross = np.linalg.svd(root @ reference.root, compute_uv=False).sum()
    return float(((mean - reference.mean) ** 2).sum() + (spread**2).sum() + np.trace(reference.cov) - 2 * cross)


def _root(cov: Array) -> Array:
    values, vectors = linalg.eigh(cov)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def kid(features: Array, real: Array) -> float:
    """Kernel distance: the unbiased squared MMD with kernel (x·y/D + 1)³; unlike Fréchet's it has no bias at small n.

    Reference: Bińkowski et al. 2018, Demystifying MMD GANs.
    """

    def kernel(a: Array, b: Array) -> Array:
        gram: Array = (a @ b.T / a.shape[1] + 1) ** 3
        return gram

    def total(a: Array, b: Array) -> float:
        return sum(float(kernel(part, b).sum()) for part in _some(a))

    def within(a: Array) -> float:
        own = ((a * a).sum(1) / a.shape[1] + 1) ** 3
        return float((total(a, a) - own.sum()) / (len(a) * (len(a) - 1)))

    return within(features) + within(real) - 2 * total(features, real) / (len(features) * len(real))


def _some(rows: Array) -> list[Array]:
    """Rows in parts, so that memory grows with their number and not with its square."""
    return np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))


def directions(d: int, count: int) -> Array:
    """Unit vectors (d, count), evenly spread by chance and the same at every call."""
    drawn = np.random.default_rng(0).standard_normal((count, d)).T
    unit: Array = drawn / np.linalg.norm(drawn, axis=0)
    return unit


def sliced(features: Array, real: Array, count: int = 128) -> float:
    """Sliced Wasserstein distance: W1 along a direction, the mean over `count` of them. Its unit is that of the features.

    It sees whole distributions, where Fréchet's sees mean and covariance, and needs no more samples than dimensions. Like
    Fréchet's its bias falls with n: two values compare at the same number of samples only.

    Reference: Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters of Measures; there W2.
    """
    widths, apart = _transport(features, real, count)
    return float((widths @ np.abs(apart)).mean())


def mind(features: Array, real: Array, count: int = 128) -> float:
    """Monge Inception distance: 3·D·W2² along a direction, the mean over `count` of them. Its unit is that of Fréchet's.

    Its bias falls with n as well, but it needs a tenth of the samples that a Fréchet distance needs.

    Reference: Berthet et al. 2026, MIND: Monge Inception Distance for Generative Models Evaluation.
    """
    widths, apart = _transport(features, real, count)
    return float(3 * features.shape[1] * (widths @ apart**2).mean())


def _transport(features: Array, real: Array, count: int) -> tuple[Array, Array]:
    """Along each direction how far each share of the samples is carried: shares (K,), distances (K, count)."""
    along = directions(features.shape[1], count)
    ours, theirs = np.sort(features @ along, 0), np.sort(real @ along, 0)
    n, m = len(ours), len(theirs)
    # both quantile functions are steps; between two neighbours of these cuts, in units of 1/(n·m), neither moves
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(cuts, prepend=0) / (n * m)
    return widths, ours[(cuts - 1) // m] - theirs[(cuts - 1) // n]


def vendi(features: Array) -> float:
    """How many different samples there are, 1 to n: exp of the entropy of the eigenvalues of K/n, K their cosines.

    It grows with n: two values compare at the same number of samples only.

    Reference: Friedman and Dieng 2023, The Vendi Score, eq. 2; the matrix with D rows has the same eigenvalues.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    n, d = unit.shape
    values = linalg.eigvalsh(unit.T @ unit if d < n else unit @ unit.T) / n
    kept = values[values > 0]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def nearest(features: Array, others: Array, batch: int = 250) -> Array:
    """Distance of each (N, D) to the nearest of the others (M, D), (N,)."""
    return np.concatenate([cdist(part, others).min(1) for part in np.split(features, range(batch, len(features), batch))])


class Coverage(NamedTuple):
    """precision, recall (k = 3), density and coverage (k = 5)."""

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(features: Array, real: Array) -> Coverage:
    """How much of the samples looks real (precision, density) and how much of the real is met (recall, coverage).

    Reference: Kynkäänniemi et al. 2019, Improved Precision and Recall, eq. 2 (k = 3); Naeem et al. 2020, Reliable
    Fidelity and Diversity Metrics, eq. 4-5 (k = 5).
    """
    of_real, own = _radii(real), _radii(features)
    near, density = np.zeros(len(features), bool), np.zeros(len(features))
    recalled, met = list[NDArray[np.bool_]](), list[NDArray[np.bool_]]()
    for some, reach in zip(_some(real), _some(of_real), strict=True):
        across = cdist(some, features)
        near |= (across <= reach[:, :1]).any(0)
        density += (across <= reach[:, 1:]).sum(0)
        recalled.append((across <= own[None, :, 0]).any(1))
        met.append((across <= reach[:, 1:]).any(1))
    return Coverage(
        float(near.mean()), float(np.concatenate(recalled).mean()), float(density.mean() / 5),
        float(np.concatenate(met).mean()),
    )  # fmt: skip


def _radii(rows: Array) -> Array:
    """`radii` of rows among themselves."""
    return np.concatenate([radii(cdist(part, rows)) for part in _some(rows)])


def radii(within: Array) -> Array:
    """Distances of each to its 3rd and its 5th neighbour, (N, 2), from those among all, (N, N)."""
    return np.partition(within, (3, 5), axis=1)[:, [3, 5]]  # the nearest is itself


def covered(across: Array, of_real: Array, within: Array) -> Coverage:
    """The same from distances: of real ones (M,) to samples (M, n), among samples (n, n), and the `radii` of the real."""
    recalled, met = met_by(across, of_real, within)
    return Coverage(
        precision=float((across <= of_real[:, :1]).any(0).mean()),
        recall=float(recalled.mean()),
        density=float((across <= of_real[:, 1:]).sum(0).mean() / 5),
        coverage=float(met.mean()),
    )


def met_by(across: Array, of_real: Array, within: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which real ones recall and coverage count, (M,) each."""
    recalled: NDArray[np.bool_] = np.asarray((across <= radii(within)[None, :, 0]).any(1))
    met: NDArray[np.bool_] = np.asarray((across <= of_real[:, 1:]).any(1))
    return recalled, met
