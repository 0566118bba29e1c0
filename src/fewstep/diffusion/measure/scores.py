"""Scores of feature vectors. Features are float arrays (N, D), one row per sample."""

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
AT_ONCE = 1000  # rows that are compared with all others at once
KEPT = 50_000  # features of real samples in memory, for scores of pairs of samples


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real data: mean (D,) and covariance (D, D) of `n` samples, and the first features (M, D)."""

    mean: Array
    cov: Array
    n: int
    features: Array

    @classmethod
    def of(cls, features: Array) -> Reference:
        """The reference of these features (n, D)."""
        return cls.over([features])

    @classmethod
    def over(cls, parts: Iterable[Array]) -> Reference:
        """The reference of features in parts (m, D). Only the first `KEPT` rows are kept in memory.

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

    Its bias is proportional to 1/n, so values are comparable only at the same n. With Inception features it is the FID.

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
    """Kernel distance: the unbiased squared MMD with kernel (x·y/D + 1)³.

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
    """Rows in parts, so that memory grows linearly with their number."""
    return np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))


def directions(d: int, count: int) -> Array:
    """Random unit vectors (d, count), uniformly distributed and the same at every call."""
    drawn = np.random.default_rng(0).standard_normal((count, d)).T
    unit: Array = drawn / np.linalg.norm(drawn, axis=0)
    return unit


def sliced(features: Array, real: Array, count: int = 128) -> float:
    """Sliced Wasserstein distance: the mean of W1 over `count` directions, in units of the features.

    It compares whole distributions and not only mean and covariance, and does not need more samples than dimensions. Its
    bias falls with n, so values are comparable only at the same n.

    Reference: Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters of Measures; there W2.
    """
    widths, apart = _transport(features, real, count)
    return float((widths @ np.abs(apart)).mean())


def mind(features: Array, real: Array, count: int = 128) -> float:
    """Monge Inception distance: the mean of 3·D·W2² over `count` directions, in units of the Fréchet distance.

    Its bias falls with n as well, but it needs a tenth of the samples of a Fréchet distance.

    Reference: Berthet et al. 2026, MIND: Monge Inception Distance for Generative Models Evaluation.
    """
    widths, apart = _transport(features, real, count)
    return float(3 * features.shape[1] * (widths @ apart**2).mean())


def _transport(features: Array, real: Array, count: int) -> tuple[Array, Array]:
    """Optimal transport along each direction: shares of the samples (K,), and their distances (K, count)."""
    along = directions(features.shape[1], count)
    ours, theirs = np.sort(features @ along, 0), np.sort(real @ along, 0)
    n, m = len(ours), len(theirs)
    # both quantile functions are constant between neighbours of these cuts, which are in units of 1/(n·m)
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(cuts, prepend=0) / (n * m)
    return widths, ours[(cuts - 1) // m] - theirs[(cuts - 1) // n]


def vendi(features: Array) -> float:
    """Vendi score, the effective number of different samples, 1 to n: exp of the entropy of the eigenvalues of K/n.

    K holds the cosines of the features. The score grows with n, so values are comparable only at the same n.

    Reference: Friedman and Dieng 2023, The Vendi Score, eq. 2; the matrix with D rows has the same eigenvalues.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    n, d = unit.shape
    values = linalg.eigvalsh(unit.T @ unit if d < n else unit @ unit.T) / n
    kept = values[values > 0]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def nearest(features: Array, others: Array, batch: int = 250) -> Array:
    """Distance of each row (N, D) to the nearest of `others` (M, D), (N,)."""
    return np.concatenate([cdist(part, others).min(1) for part in np.split(features, range(batch, len(features), batch))])


class Coverage(NamedTuple):
    """Precision and recall with k = 3 neighbours, density and coverage with k = 5."""

    precision: float
    recall: float
    density: float
    coverage: float


def coverage(features: Array, real: Array) -> Coverage:
    """Shares of samples that look real (precision, density) and of real samples that are covered (recall, coverage).

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
    """The `radii` of rows (N, D) among themselves, (N, 2)."""
    return np.concatenate([radii(cdist(part, rows)) for part in _some(rows)])


def radii(within: Array) -> Array:
    """Distances of each sample to its 3rd and 5th neighbour, (N, 2), from all distances (N, N)."""
    return np.partition(within, (3, 5), axis=1)[:, [3, 5]]  # index 0 is the sample itself


def covered(across: Array, of_real: Array, within: Array) -> Coverage:
    """See `coverage`; from distances of real to samples (M, n), among samples (n, n), and `radii` of the real (M, 2)."""
    recalled, met = met_by(across, of_real, within)
    return Coverage(
        precision=float((across <= of_real[:, :1]).any(0).mean()),
        recall=float(recalled.mean()),
        density=float((across <= of_real[:, 1:]).sum(0).mean() / 5),
        coverage=float(met.mean()),
    )


def met_by(across: Array, of_real: Array, within: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The real samples that recall and coverage count, (M,) each."""
    recalled: NDArray[np.bool_] = np.asarray((across <= radii(within)[None, :, 0]).any(1))
    met: NDArray[np.bool_] = np.asarray((across <= of_real[:, 1:]).any(1))
    return recalled, met
