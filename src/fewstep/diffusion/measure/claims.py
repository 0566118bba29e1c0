"""Tests whether a checkpoint is what its files say, by properties of a trained denoiser on real samples."""

from __future__ import annotations

import math
import time
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.progress import progress
from ..cond import Cond
from ..denoiser import Denoiser
from ..schedule import Schedule
from ..two_times import TwoTimes
from .denoising import JUST_BELOW, levels_of, noise_of
from .scores import Array

TOLERATED = 1.1  # on errors: at high levels the best output is the mean, which a few real samples give only roughly
AN_END = 2.0  # a consistency function returns one possible sample, whose mean square error is twice that of their mean
LEFT = 0.01  # share by which mixing output and input may reduce the error of a trained network
SURE = 3.0  # standard errors, as twelve levels are tested
OTHERS = (0.5, 0.64, 0.8, 1.25, 1.56, 2.0)  # tried levels relative to the true one
BETTER = 0.97  # an error smaller by this factor at another level means another schedule
SAME = 1e-4  # relative change of a sample that f(x, 0) may make


class Claim(NamedTuple):
    """A property that a checkpoint should have, whether it has it, and a sentence on it."""

    name: str
    holds: bool
    sentence: str


@dataclass(frozen=True)
class Answers:
    """The errors of a denoiser on the same samples and noise at each of K levels.

    Attributes:
        levels: σ, (K,).
        errors: mean squares, (N, K).
        left, unsure: share by which mixing output and input reduces the error, and its standard error, (K,) each.
        seconds: time per row of the network.
    """

    levels: Tensor
    errors: Array
    left: Array
    unsure: Array
    seconds: float


class Told:
    """A schedule that gives the network the time of `factor` times the true level."""

    def __init__(self, schedule: Schedule, factor: float) -> None:
        self.schedule, self.factor = schedule, factor

    def __getattr__(self, name: str) -> object:
        return getattr(self.schedule, name)

    def time(self, sigma: Tensor) -> Tensor:
        return self.schedule.time(self.factor * sigma)


def claims(
    denoiser: Denoiser, x0: Tensor, cond: Cond, *, real: Tensor, mean: bool = True, levels: Tensor | None = None
) -> tuple[list[Claim], float]:
    """Tests all claims on real samples. Returns them and the seconds per network row.

    Args:
        denoiser: the denoiser on its device, in evaluation mode.
        x0: real samples (N, *) to denoise.
        cond: conditions, N rows.
        real: as many real samples as are available (M, *), for the linear filter.
        mean: whether it is a diffusion model, which predicts the mean of all possible samples; a student need not.
        levels: falling, (K,); by default twelve between the lowest and the highest level of the schedule.
    """
    levels = levels_of(denoiser) if levels is None else levels
    found = [identity(denoiser, x0, cond, float(levels[-1]))]
    answers = asked_at(denoiser, x0, cond, levels, centre=real.mean(0))
    broken = ~np.isfinite(answers.errors).all(0)
    if broken.any():
        level = float(levels[int(broken.argmax())])
        said = f"It is broken: it returns numbers that are not finite at σ = {level:.2g}."
        return [*found, Claim("finite", False, said)], answers.seconds
    found.append(Claim("finite", True, f"All its outputs are finite at {len(levels)} noise levels."))
    found.append(_denoises(answers, filtered(real, x0, levels), mean))
    if mean:
        found.append(_calibrated(denoiser, x0, cond, answers, real.mean(0)))
    return found, answers.seconds


@torch.no_grad()
def identity(denoiser: Denoiser, x0: Tensor, cond: Cond, lowest: float) -> Claim:
    """Tests f(x, σ) = x at σ = `identity`, and reports the change at the lowest level."""
    x = x0.to(denoiser.device)
    at = denoiser.identity
    name, size = f"f(x, {at:g}) = x", float(x.square().mean().sqrt())
    apart = float((_answer(denoiser, x, at, cond) - x).square().mean().sqrt())
    moved = float((_answer(denoiser, x, lowest, cond) - x).square().mean().sqrt())
    below = f"at its lowest level, σ = {lowest:.2g}, it changes a real sample by {moved:.2g}"
    if apart <= SAME * size:
        return Claim(name, True, f"At σ = {at:g} a sample is unchanged; {below}.")
    return Claim(
        name, False, f"At σ = {at:g} it changes a sample by {apart:.2g}, so it can be sampled but not tuned; {below}."
    )


@torch.no_grad()
def asked_at(
    denoiser: Denoiser, x0: Tensor, cond: Cond, levels: Tensor, *, centre: Tensor, seed: int = 0, batch: int = 64
) -> Answers:
    """The errors of a denoiser at these levels; row k has the same noise at all of them.

    `left` compares f with f + a·(f − centre) + b·(x − f). For a denoiser that predicts the mean of all possible samples,
    a = b = 0 is best, because its error is orthogonal to every function of x. A wrong schedule or a broken layer makes
    other a and b better.

    Reference: the orthogonality of the conditional mean, as in Efron 2011, Tweedie's Formula and Selection Bias.
    """
    clean, middle = x0.to(denoiser.device), centre.to(denoiser.device)
    eps = noise_of(clean, seed)
    errors, left, unsure = [], [], []
    start = time.perf_counter()
    with progress("denoising", len(clean) * len(levels)) as done:
        for level in levels.tolist():
            x = clean + level * eps
            parts = torch.arange(len(x)).split(batch)
            f = torch.cat([_answer(denoiser, x[p], level, cond.part(slice(int(p[0]), int(p[-1]) + 1))) for p in parts])
            error = (clean - f).flatten(1).double().cpu()
            ways = torch.stack([(f - middle).flatten(1), (x - f).flatten(1) / max(level, 1)], 2).double().cpu()
            errors.append(error.square().mean(1))
            gain = _gain(error, ways)
            left.append(gain[0])
            unsure.append(gain[1])
            done(len(clean))
    seconds = (time.perf_counter() - start) / len(clean) / len(levels)
    return Answers(levels, torch.stack(errors, 1).numpy(), np.array(left), np.array(unsure), seconds)


def filtered(real: Tensor, x0: Tensor, levels: Tensor, *, seed: int = 0) -> Array:
    """The errors (N, K) of the best linear filter on x0 (N, *) with the noise of `asked_at`.

    On average they are below σ², the error of returning x, and below the variance, the error of returning the mean.

    Args:
        real: samples (M, *) for the spectrum.
        x0, levels, seed: as for `asked_at`.

    Reference: Wiener 1949, Extrapolation, Interpolation, and Smoothing of Stationary Time Series.
    """
    axes, centre = tuple(range(min(2, real.ndim - 1), real.ndim)), real.double().mean(0)
    size = math.prod(real.shape[axis] for axis in axes)
    power = torch.fft.fftn(real.double() - centre, dim=axes).abs().square().sum(0) / size / max(1, len(real) - 1)
    apart, eps, errors = x0.double().cpu() - centre, noise_of(x0, seed).double().cpu(), []
    for s in levels.tolist():
        spectrum = torch.fft.fftn(apart + s * eps, dim=axes) * power / (power + s**2)
        errors.append((torch.fft.ifftn(spectrum, dim=axes).real - apart).square().flatten(1).mean(1))
    found: Array = torch.stack(errors, 1).numpy()
    return found


def _denoises(answers: Answers, linear: Array, mean: bool) -> Claim:
    """Tests that the error is below that of the best linear filter at each level, by more than chance."""
    sigma, allowed = answers.levels.numpy(), (1 if mean else AN_END) * TOLERATED
    found, ratio = answers.errors.mean(0), answers.errors.mean(0) / linear.mean(0)
    more = answers.errors - allowed * linear
    surely = more.mean(0) - SURE * more.std(0, ddof=1) / len(more) ** 0.5
    worst, best = int((surely / linear.mean(0)).argmax()), int(ratio.argmin())
    if surely[worst] <= 0:
        times = "" if mean else f" {AN_END:g} times"
        return Claim("denoises", True, (
            f"It denoises: at {len(sigma)} levels from σ = {sigma[-1]:.2g} to {sigma[0]:.2g} its error on "
            f"{len(answers.errors)} real samples is below{times} that of the best linear filter; at σ = {sigma[best]:.2g} "
            f"it is {ratio[best]:.2g} times that."
        ))  # fmt: skip
    above = [f"{level:.2g}" for level, error in zip(sigma, found, strict=True) if error > level**2]
    noise = f" At σ = {', '.join(above)} it is above the noise itself." if above else ""
    return Claim("denoises", False, (
        f"It does not denoise these data: at σ = {sigma[worst]:.2g} its error is {ratio[worst]:.3g} times that of the best "
        f"linear filter; {_why(mean)}.{noise}"
    ))  # fmt: skip


def _why(mean: bool) -> str:
    if mean:
        return "its prediction, its schedule or its weights are not what its files say, or it was trained on other data"
    return "a few-step student need not denoise below the levels that it is sampled at, but it is no teacher then"


def _calibrated(denoiser: Denoiser, x0: Tensor, cond: Cond, answers: Answers, centre: Tensor) -> Claim:
    """Tests that mixing output and input does not reduce the error; if it does, other levels are tried as the cause."""
    sigma, surely = answers.levels, answers.left - SURE * answers.unsure
    worst = int(surely.argmax())
    if surely[worst] <= LEFT:
        most = int(answers.left.argmax())
        return Claim("calibrated", True, (
            f"It is calibrated: mixing its noisy input into its output takes away at most {_share(answers, most)} of its "
            "error."
        ))  # fmt: skip
    told = (
        f"It is not calibrated: at σ = {float(sigma[worst]):.2g} mixing its noisy input into its output takes away "
        f"{_share(answers, worst)} of its error, and a trained denoiser leaves nothing to take away"
    )
    level, own = sigma[worst : worst + 1], float(answers.errors[:, worst].mean())
    errors = {factor: _told(denoiser, x0, cond, level, factor, centre) for factor in OTHERS}
    factor = min(errors, key=lambda each: errors[each])
    if errors[factor] < BETTER * own:
        less = 100 * (1 - errors[factor] / own)
        return Claim("calibrated", False, (
            f"{told}. Told that σ is {factor * float(level):.2g}, it errs {less:.0f} % less: it "
            "was trained with another schedule than its files say."
        ))  # fmt: skip
    return Claim("calibrated", False, (
        f"{told}. Telling it another σ does not help: its weights are broken, or it was trained on other data."
    ))  # fmt: skip


def _told(denoiser: Denoiser, x0: Tensor, cond: Cond, level: Tensor, factor: float, centre: Tensor) -> float:
    """The error if the network is given the time of another level."""
    other = copy(denoiser)  # the same network with another schedule
    other.schedule = Told(denoiser.schedule, factor)  # type: ignore[assignment]  # it forwards all other attributes
    return float(asked_at(other, x0, cond, level, centre=centre).errors.mean())


def _share(answers: Answers, k: int) -> str:
    """In whole percents, or in tenths where both figures are small."""
    left, reach = 100 * float(answers.left[k]), 196 * float(answers.unsure[k])
    digits = 0 if max(left, reach) >= 10 else 1
    return f"{left:.{digits}f} ± {reach:.{digits}f} %"


def _gain(error: Tensor, ways: Tensor) -> tuple[float, float]:
    """The share by which the best sum of ways (N, D, 2) reduces errors (N, D), and its standard error over rows."""
    size = error.square().sum().clamp(min=1e-30)
    gram, along = torch.einsum("ndi,ndj->ij", ways, ways), torch.einsum("ndi,nd->i", ways, error)
    best = torch.linalg.pinv(gram, hermitian=True) @ along
    each = error.square().sum(1) - (error - ways @ best).square().sum(1)
    return float(each.sum() / size), float(each.std() * len(error) ** 0.5 / size)


def _answer(denoiser: Denoiser, x: Tensor, level: float, cond: Cond) -> Tensor:
    sigma = x.new_full((len(x),), level)
    here = cond.part(slice(0, len(x))).to(x.device)
    asked = here.until(JUST_BELOW * sigma) if isinstance(denoiser, TwoTimes) else here
    answer: Tensor = denoiser(x, sigma, asked)
    return answer.float()
