"""Fits a power law to the scores of a run, and forecasts how many images a goal needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ...core.intervals import Estimate

Array = NDArray[np.float64]
EXPONENTS = np.geomspace(0.05, 4.0, 120)  # a smaller exponent is invisible in a run, a larger one is a step
FEWEST = 5  # points: three parameters are fitted, and the residuals give the interval
FAR = 100.0  # times the images of the last point: no forecast goes further
PLACES = 400  # grid on which the ends of an interval are searched
SIGMAS = 1.959963984540054  # standard deviations from the mean to the ends of a normal 95 % interval


@dataclass(frozen=True)
class PowerLaw:
    """The value a + b·n^(−c) after n images, which levels off at `a`; a, b ≥ 0, c > 0."""

    a: float
    b: float
    c: float

    def __call__(self, images: float) -> float:
        return float(self.a + self.b * images**-self.c)

    def images(self, goal: float) -> float:
        """The number of images after which the value is `goal`; infinite if it never is."""
        return float(((goal - self.a) / self.b) ** (-1 / self.c)) if goal > self.a and self.b > 0 else math.inf


@dataclass(frozen=True)
class Curve:
    """Values of one run, or of runs of different lengths, at rising numbers of images.

    Laws a + b·n^(−c) with a, b ≥ 0 and c in `EXPONENTS` are fitted by least squares, weighted by the intervals. With c and
    one value of the law fixed, a single parameter is left, which has a closed form. So the profile of χ² is exact on the
    grid of c, without iterations.

    Attributes:
        images: number of images of each point, rising, (k,).
        values: values with their 95 % intervals, (k,).
        correlation: correlation of their errors, 0 to below 1, as for points with the same seeds or the same teacher.

    Raises:
        ValueError: there are too few points, the images do not rise, or a value or interval is not valid.
    """

    images: tuple[float, ...]
    values: tuple[Estimate, ...]
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if len(self.images) < FEWEST or len(self.images) != len(self.values):
            raise ValueError(f"a learning curve needs at least {FEWEST} points, got {len(self.images)}")
        if any(later <= earlier for earlier, later in zip((0.0, *self.images), self.images, strict=False)):
            raise ValueError(f"the images of a learning curve must rise from above 0, got {self.images}")
        if not all(math.isfinite(x) for value in self.values for x in value) or self._errors.min() <= 0:
            raise ValueError("each point of a learning curve needs a finite value with an interval around it")
        assert 0 <= self.correlation < 1

    @property
    def _errors(self) -> Array:
        """Standard errors, (k,)."""
        return np.array([(value.high - value.low) / (2 * SIGMAS) for value in self.values])

    @property
    def _fitted(self) -> tuple[Array, Array, Array]:
        """Values y (k,), their weights (k, k), and n^(−c) for each exponent, (E, k); n in units of the last point."""
        y, rho, k = np.array([value.value for value in self.values]), self.correlation, len(self.values)
        inverse = (np.eye(k) - rho / (1 + (k - 1) * rho)) / (1 - rho)  # inverse of the correlation matrix
        weight = inverse / np.outer(self._errors, self._errors)
        return y, weight, (np.array(self.images) / self.images[-1]) ** -EXPONENTS[:, None]

    def fit(self) -> PowerLaw:
        """The least-squares law."""
        y, weight, power = self._fitted
        total, of_y, of_power = weight.sum(), weight.sum(0) @ y, power @ weight.sum(0)
        both, square = power @ weight @ y, np.einsum("ek,kl,el->e", power, weight, power)
        spread, nothing = total * square - of_power**2, np.zeros(len(EXPONENTS))
        free = np.divide(total * both - of_power * of_y, spread, out=nothing.copy(), where=spread > 0)
        a = np.concatenate(
            [(of_y - free * of_power) / total, nothing, nothing + of_y / total]
        )  # both free, or one of them 0
        b = np.concatenate([free, both / square, nothing])
        rest = y - a[:, None] - b[:, None] * np.tile(power, (3, 1))
        left = np.einsum("ek,kl,el->e", rest, weight, rest)
        best = int(np.where((a >= 0) & (b >= 0), left, np.inf).argmin())
        c = float(np.tile(EXPONENTS, 3)[best])
        return PowerLaw(float(a[best]), float(b[best] * self.images[-1] ** c), c)

    @property
    def flattens(self) -> bool:
        """Whether a power law fits the points no worse than a straight line over the images.

        At first a student's scores fall ever faster, because it learns from low noise levels upwards. A power law that is
        fitted to such points forecasts nothing.
        """
        y, weight, _ = self._fitted
        plain = np.vander(np.array(self.images) / self.images[-1], 2)
        slope = np.linalg.solve(plain.T @ weight @ plain, plain.T @ weight @ y)
        left, of_line = self._left(self.fit()), (y - plain @ slope) @ weight @ (y - plain @ slope)
        return bool(left - of_line <= stats.chi2.ppf(0.95, 1) * max(1.0, of_line / (len(y) - 2)))

    def settled(self) -> Curve | None:
        """The longest end of the curve that `flattens`; None if it is too early to tell."""
        for first in range(len(self.images) - FEWEST + 1):
            rest = Curve(self.images[first:], self.values[first:], self.correlation)
            if rest.flattens:
                return rest
        return None

    def misfit(self, images: ArrayLike, value: ArrayLike) -> Array:
        """The least χ² of all laws with this `value` after `images`, which may be infinite; both are broadcast."""
        n, goal = np.broadcast_arrays(np.asarray(images, float), np.asarray(value, float))
        (y, weight, power), at = self._fitted, (n.reshape(-1, 1) / self.images[-1]) ** -EXPONENTS  # (N, E), 0 at infinity
        gap = y - goal.reshape(-1, 1)  # (N, k) ≈ b·(n_i^−c − n^−c), with b ≥ 0 and a = goal − b·n^−c ≥ 0
        one, many = gap @ weight, weight.sum(0)
        cross = one @ power.T - at * one.sum(1, keepdims=True)
        square = np.einsum("ek,kl,el->e", power, weight, power) - 2 * at * (power @ many) + at**2 * many.sum()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            most = np.where(at > 0, goal.reshape(-1, 1) / at, np.inf)
            b = np.clip(np.where(square > 0, cross / square, 0.0), 0.0, most)
        left = (one * gap).sum(1, keepdims=True) - 2 * b * cross + b**2 * square
        least: Array = left.min(1).reshape(n.shape)
        return least

    def _bound(self) -> float:
        """The largest χ² of a law within the 95 % interval.

        Points may scatter more than their intervals say, because a training is random itself. Then the bound uses the
        scatter around the best law, which few points estimate roughly, so it is wide.
        """
        left, freedom = self._left(self.fit()), len(self.values) - 3
        return left + float(max(stats.chi2.ppf(0.95, 1), left / freedom * stats.f.ppf(0.95, 1, freedom)))

    def _left(self, law: PowerLaw) -> float:
        """χ² of a law."""
        y, weight, _ = self._fitted
        rest = y - [law(n) for n in self.images]
        return float(rest @ weight @ rest)

    def predict(self, images: float) -> Estimate:
        """The value after `images`, or the level after infinitely many, with a 95 % interval."""
        law = self.fit()
        value = law.a if math.isinf(images) else law(images)
        grid = np.concatenate([[value], np.linspace(0, 2 * max(each.value for each in self.values), 1000)])
        believed = grid[self.misfit(images, grid) <= self._bound()]
        return Estimate(value, float(min([value, *believed])), float(max([value, *believed])))

    def needed(self, goal: float, error: float = 0.0) -> Estimate:
        """The total number of images after which the value is `goal`, with a 95 % interval; `error` is the goal's own.

        Numbers beyond `FAR` times the images of the last point count as infinite.
        """
        value, far, bound = self.fit().images(goal), FAR * self.images[-1], self._bound()
        value = value if value <= far else math.inf
        places = np.append(np.geomspace(self.images[0] / FAR, far, PLACES), math.inf)
        away = np.linspace(-3, 3, 13) if error else np.zeros(1)  # deviations of the goal in standard errors
        misfit = self.misfit(places[:, None], goal + error * away) + away**2
        believed = places[misfit.min(1) <= bound]
        low, high = min([value, *believed]), max([value, *believed])
        return Estimate(value, float(low), float(math.inf if high >= far else high))
