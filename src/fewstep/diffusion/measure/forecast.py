"""How much is enough: a power law through the scores of a run, and how many images a goal needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ...core.intervals import Estimate

Array = NDArray[np.float64]
EXPONENTS = np.geomspace(0.05, 4.0, 120)  # a slower fall nobody sees in a run, a faster one is a step
FEWEST = 5  # points: three numbers are fitted, and what they leave over says how far the law can be trusted
FAR = 100.0  # times the images of the last point: further on nothing is said
PLACES = 400  # on the way there, where the ends of an interval are looked for
SIGMAS = 1.959963984540054  # of a normal distribution, to either end of its 95 % interval


@dataclass(frozen=True)
class PowerLaw:
    """a + b·n^(−c), the value after n images: it levels off at `a`; a, b ≥ 0, c > 0."""

    a: float
    b: float
    c: float

    def __call__(self, images: float) -> float:
        return float(self.a + self.b * images**-self.c)

    def images(self, goal: float) -> float:
        """After how many images the value is `goal`; infinite where it never is."""
        return float(((goal - self.a) / self.b) ** (-1 / self.c)) if goal > self.a and self.b > 0 else math.inf


@dataclass(frozen=True)
class Curve:
    """Values of one run, or of runs of different lengths, at rising numbers of images.

    Laws a + b·n^(−c) with a, b ≥ 0 and c out of `EXPONENTS` are fitted by least squares, weighted by the intervals. Given c
    and a value that the law has somewhere, one number is left to fit, and has a formula. So the profile of χ² over all c is
    exact on their grid, and nothing is iterated.

    Attributes:
        images: of each point, (k,).
        values: with their 95 % intervals, (k,).
        correlation: of their errors, below 1: points on the same seeds, or held against the same teacher, err together.

    Raises:
        ValueError: too few points, images that do not rise, or values or intervals that cannot be.
    """

    images: tuple[float, ...]
    values: tuple[Estimate, ...]
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if len(self.images) < FEWEST or len(self.images) != len(self.values):
            raise ValueError(f"a learning curve needs at least {FEWEST} points, a value each; got {len(self.images)}")
        if any(later <= earlier for earlier, later in zip((0.0, *self.images), self.images, strict=False)):
            raise ValueError(f"the images of a learning curve rise from above 0, got {self.images}")
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
        inverse = (np.eye(k) - rho / (1 + (k - 1) * rho)) / (1 - rho)  # of a matrix of ones on and rho beside the diagonal
        weight = inverse / np.outer(self._errors, self._errors)
        return y, weight, (np.array(self.images) / self.images[-1]) ** -EXPONENTS[:, None]

    def fit(self) -> PowerLaw:
        """The law of least squares."""
        y, weight, power = self._fitted
        total, of_y, of_power = weight.sum(), weight.sum(0) @ y, power @ weight.sum(0)
        both, square = power @ weight @ y, np.einsum("ek,kl,el->e", power, weight, power)
        spread, nothing = total * square - of_power**2, np.zeros(len(EXPONENTS))
        free = np.divide(total * both - of_power * of_y, spread, out=nothing.copy(), where=spread > 0)
        a = np.concatenate(
            [(of_y - free * of_power) / total, nothing, nothing + of_y / total]
        )  # both free, or one at its end
        b = np.concatenate([free, both / square, nothing])
        rest = y - a[:, None] - b[:, None] * np.tile(power, (3, 1))
        left = np.einsum("ek,kl,el->e", rest, weight, rest)
        best = int(np.where((a >= 0) & (b >= 0), left, np.inf).argmin())
        c = float(np.tile(EXPONENTS, 3)[best])
        return PowerLaw(float(a[best]), float(b[best] * self.images[-1] ** c), c)

    @property
    def flattens(self) -> bool:
        """Whether a law describes the points no worse than a straight line over the images does.

        A student's scores fall ever faster at first, as what it learns at low noise has yet to come up, hop by hop. No
        power law knows that, and one that is fitted there says nothing of what comes.
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
        """The least χ² of all laws that have this `value` after so many images, which may be infinite; both broadcast."""
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
        """Up to which χ² a law is believed, at 95 %.

        A training has chance of its own, which no interval of a score holds: points may scatter more than they say. Then
        the bound is that of a scatter which is estimated from what the best law leaves over, by few points, so it is wide.
        """
        left, freedom = self._left(self.fit()), len(self.values) - 3
        return left + float(max(stats.chi2.ppf(0.95, 1), left / freedom * stats.f.ppf(0.95, 1, freedom)))

    def _left(self, law: PowerLaw) -> float:
        """χ² of a law."""
        y, weight, _ = self._fitted
        rest = y - [law(n) for n in self.images]
        return float(rest @ weight @ rest)

    def predict(self, images: float) -> Estimate:
        """The value after so many images, or where it levels off after infinitely many, with a 95 % interval."""
        law = self.fit()
        value = law.a if math.isinf(images) else law(images)
        grid = np.concatenate([[value], np.linspace(0, 2 * max(each.value for each in self.values), 1000)])
        believed = grid[self.misfit(images, grid) <= self._bound()]
        return Estimate(value, float(min([value, *believed])), float(max([value, *believed])))

    def needed(self, goal: float, error: float = 0.0) -> Estimate:
        """After how many images in all the value is `goal`, which has a standard error, with a 95 % interval.

        What lies beyond `FAR` times the last point's images counts as infinitely many, the value itself included.
        """
        value, far, bound = self.fit().images(goal), FAR * self.images[-1], self._bound()
        value = value if value <= far else math.inf
        places = np.append(np.geomspace(self.images[0] / FAR, far, PLACES), math.inf)
        away = np.linspace(-3, 3, 13) if error else np.zeros(1)  # so many standard errors the goal may be off
        misfit = self.misfit(places[:, None], goal + error * away) + away**2
        believed = places[misfit.min(1) <= bound]
        low, high = min([value, *believed]), max([value, *believed])
        return Estimate(value, float(low), float(math.inf if high >= far else high))
