"""Whether a checkpoint is what its files say: what a trained denoiser must satisfy on real samples, a sentence each."""

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

TOLERATED = 1.1  # high up a good answer is the mean, which few real samples do not know exactly either
AN_END = 2.0  # a consistency function answers with one of what may be there, and errs by twice as much as their mean does
LEFT = 0.01  # share of its error that a trained network may leave to be had by mixing its answer with its input
SURE = 3.0  # standard errors: twelve levels are looked at
OTHERS = (0.5, 0.64, 0.8, 1.25, 1.56, 2.0)  # levels that a network is told in place of the true one, over it
BETTER = 0.97  # an error that is so much smaller under another level says that the schedule is another one
SAME = 1e-4  # of a sample, which f(x, 0) may change


class Claim(NamedTuple):
    """What a checkpoint should satisfy, whether it does, and that in one sentence."""

    name: str
    holds: bool
    sentence: str


@dataclass(frozen=True)
class Answers:
    """What a denoiser makes of the same samples and noise at each of K levels.

    Attributes:
        levels: σ, (K,).
        errors: mean squares, (N, K).
        left: share of the error that is left to be had by mixing the answer with its input, (K,), and its standard error.
        seconds: of a row in the network.
    """

    levels: Tensor
    errors: Array
    left: Array
    unsure: Array
    seconds: float


class Told:
    """A schedule that tells its network another level than the true one: `factor` times it."""

    def __init__(self, schedule: Schedule, factor: float) -> None:
        self.schedule, self.factor = schedule, factor

    def __getattr__(self, name: str) -> object:
        return getattr(self.schedule, name)

    def time(self, sigma: Tensor) -> Tensor:
        return self.schedule.time(self.factor * sigma)


def claims(
    denoiser: Denoiser, x0: Tensor, cond: Cond, *, real: Tensor, mean: bool = True, levels: Tensor | None = None
) -> tuple[list[Claim], float]:
    """All claims that real samples can test, and the seconds that the network takes for a row.

    Args:
        denoiser: on its device, in evaluation mode.
        x0: real samples (N, *) that are denoised.
        cond: a row each.
        real: as many real samples as are at hand (M, *); they say what is known of the data without a network.
        mean: whether it is a diffusion model, which answers with the mean of what may be there; a student need not.
        levels: falling, (K,); twelve of those that it was trained on if left out.
    """
    levels = levels_of(denoiser) if levels is None else levels
    found = [identity(denoiser, x0, cond, float(levels[-1]))]
    answers = asked_at(denoiser, x0, cond, levels, centre=real.mean(0))
    broken = ~np.isfinite(answers.errors).all(0)
    if broken.any():
        level = float(levels[int(broken.argmax())])
        said = f"It is broken: a checkpoint answers with numbers that are not finite at σ = {level:.2g}."
        return [*found, Claim("finite", False, said)], answers.seconds
    found.append(Claim("finite", True, f"All its answers are finite numbers, at {len(levels)} noise levels."))
    found.append(_denoises(answers, filtered(real, x0, levels), mean))
    if mean:
        found.append(_calibrated(denoiser, x0, cond, answers, real.mean(0)))
    return found, answers.seconds


@torch.no_grad()
def identity(denoiser: Denoiser, x0: Tensor, cond: Cond, lowest: float) -> Claim:
    """f(x, 0) = x, or at the level where the checkpoint's parametrisation has it; and what it does at its lowest level."""
    x = x0.to(denoiser.device)
    at = denoiser.identity
    name, size = f"f(x, {at:g}) = x", float(x.square().mean().sqrt())
    apart = float((_answer(denoiser, x, at, cond) - x).square().mean().sqrt())
    moved = float((_answer(denoiser, x, lowest, cond) - x).square().mean().sqrt())
    below = f"at its lowest level, σ = {lowest:.2g}, it moves a real sample by {moved:.2g}"
    if apart <= SAME * size:
        return Claim(name, True, f"At σ = {at:g} a sample stays as it is; {below}.")
    return Claim(
        name, False, f"At σ = {at:g} it changes a sample by {apart:.2g}, so it can be sampled, and not be tuned; {below}."
    )


@torch.no_grad()
def asked_at(
    denoiser: Denoiser, x0: Tensor, cond: Cond, levels: Tensor, *, centre: Tensor, seed: int = 0, batch: int = 64
) -> Answers:
    """The answers of a denoiser at these levels; row k has the same noise at all of them.

    What is left: take the answers f + a·(f − centre) + b·(x − f). For a denoiser that has learned the mean of what may be
    there, a = b = 0 is best, because its error is orthogonal to every function of x. Another level than the one that it
    believes in, or a layer out of order, leaves something to be had.

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
    """The errors of the best linear filter on x0 (N, *) with the noise of `asked_at`, (N, K): what a spectrum alone knows.

    On average it is below σ², the error of leaving the noise where it is, and below the variance, that of answering with
    the mean.

    Args:
        real: samples (M, *) that the spectrum is taken of.
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
    """Its error must be below that of the best linear filter at each level; by chance a few samples say otherwise."""
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
    """Nothing may be left to be had at any level; where something is, another level that is told may be the cause."""
    sigma, surely = answers.levels, answers.left - SURE * answers.unsure
    worst = int(surely.argmax())
    if surely[worst] <= LEFT:
        most = int(answers.left.argmax())
        return Claim("calibrated", True, (
            f"It is calibrated: mixing its answer with its input takes at most {_share(answers, most)} of its error away."
        ))  # fmt: skip
    told = (
        f"It is not calibrated: at σ = {float(sigma[worst]):.2g} mixing its answer with its input takes "
        f"{_share(answers, worst)} of its error away, of which a trained denoiser leaves none"
    )
    level, own = sigma[worst : worst + 1], float(answers.errors[:, worst].mean())
    errors = {factor: _told(denoiser, x0, cond, level, factor, centre) for factor in OTHERS}
    factor = min(errors, key=lambda each: errors[each])
    if errors[factor] < BETTER * own:
        return Claim("calibrated", False, (
            f"{told}. Told σ = {factor * float(level):.2g} there, it errs {1 - errors[factor] / own:.0%} less: it was "
            "trained with another schedule than its files say."
        ))  # fmt: skip
    return Claim("calibrated", False, (
        f"{told}. No other level that it is told helps: weights are out of place, or it was trained on other data."
    ))  # fmt: skip


def _told(denoiser: Denoiser, x0: Tensor, cond: Cond, level: Tensor, factor: float, centre: Tensor) -> float:
    """The error where the network is told another level."""
    other = copy(denoiser)  # the same network under a schedule of its own
    other.schedule = Told(denoiser.schedule, factor)  # type: ignore[assignment]  # it passes on all that it lacks
    return float(asked_at(other, x0, cond, level, centre=centre).errors.mean())


def _share(answers: Answers, k: int) -> str:
    reach = 1.96 * answers.unsure[k]
    return f"{100 * answers.left[k]:.2g} ± {100 * reach:.1g} %"


def _gain(error: Tensor, ways: Tensor) -> tuple[float, float]:
    """The share of errors (N, D) that the best sum of ways (N, D, 2) takes away, and its standard error over the rows."""
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
