"""Denoising error by noise level: what a checkpoint knows of real samples, before any sampler has a say in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...core.progress import progress
from ...core.seeds import derive, generators, normal
from ..cond import Cond
from ..denoiser import Denoiser
from ..noise import karras
from ..two_times import TwoTimes
from .scores import Array

HIGHEST = 80.0  # higher up noise alone is seen, and all answer with the mean of the data
TOLERATED = 1.1  # high up a good answer is the mean, which few real samples do not know exactly either
JUST_BELOW = 0.99  # where a student of any number of calls is asked to end, over the level: there it is a diffusion model


def levels_of(*denoisers: Denoiser, count: int = 12) -> Tensor:
    """Karras' levels, falling, within what all the denoisers were trained on, (count,) float64."""
    low = max(denoiser.schedule.sigma_min for denoiser in denoisers)
    high = min(HIGHEST, *(denoiser.schedule.sigma_max for denoiser in denoisers))
    return karras(count, low, high)


@torch.no_grad()
def errors(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    levels: Tensor,
    *,
    seed: int = 0,
    batch: int = 250,
    precision: str = "no",
    first: int = 0,
) -> Array:
    """The mean square over values of f(x0 + σ·eps, σ) − x0 at each level, (N, K).

    Row k has the same noise at all levels and for any denoiser, so two of them are compared in pairs.

    Args:
        denoiser: f, on its device. A `TwoTimes` is asked for the end of a segment just below σ.
        x0: real samples (N, *).
        cond: a row each.
        levels: σ, (K,).
        seed: of the noise.
        batch: rows at once.
        precision: "no" (float32) or "bf16" in the network.
        first: the number of the first row, where these are some of more.

    Raises:
        ValueError: an answer that is not finite.
    """
    found = []
    with progress("denoising", len(x0) * len(levels)) as done:
        for start in range(0, len(x0), batch):
            rows = slice(start, start + batch)
            clean = x0[rows].to(denoiser.device)
            eps = normal(generators(_seeds(seed, first + start, len(clean))), clean.shape[1:], clean.device)
            at_each = [
                _error(denoiser, clean, eps, float(level), cond.part(rows).to(clean.device), precision) for level in levels
            ]
            found.append(torch.stack(at_each, 1).cpu())
            done(len(clean) * len(levels))
    every: Array = torch.cat(found).double().numpy()
    broken = ~np.isfinite(every).all(0)
    if broken.any():
        level = float(levels[int(broken.argmax())])
        raise ValueError(
            f"a checkpoint answers with numbers that are not finite at σ = {level:.2g}; its weights are broken"
        )
    return every


def verdict_of(denoiser: Denoiser, x0: Tensor, cond: Cond, *, mean: bool = True, batch: int = 250) -> tuple[bool, str]:
    """Whether a checkpoint denoises real samples, and that in one sentence.

    At each level its error must be below those of the two answers that need no network: the noisy sample as it is, which
    errs by σ², and the mean of the data, which errs by their variance. Where a prediction, a scale or a weight is not what
    its files say, one of the two is better at some level.

    Args:
        denoiser, x0, cond, batch: as for `errors`.
        mean: whether it answers with the mean of what may be there; a consistency function answers with one of it, which
            errs by at most twice as much.
    """
    levels = levels_of(denoiser)
    try:
        found = errors(denoiser, x0, cond, levels, batch=batch).mean(0)
    except ValueError as error:
        return False, f"It is broken: {error}."
    sigma = levels.numpy()
    spread = float((x0 - x0.mean(0)).double().square().mean()) * len(x0) / max(1, len(x0) - 1)
    allowed = (TOLERATED if mean else 2 * TOLERATED) * np.minimum(sigma**2, spread)
    worst = int((found / allowed).argmax())
    if found[worst] <= allowed[worst]:
        return True, (
            f"It denoises: at {len(levels)} levels from σ = {sigma[-1]:.2g} to {sigma[0]:.2g} its error on {len(x0)} real "
            "samples is below that of leaving the noise where it is, and of answering with the mean of the data."
        )
    other = "leaving the noise where it is" if sigma[worst] ** 2 < spread else "answering with the mean of the data"
    times = found[worst] / min(sigma[worst] ** 2, spread)
    return False, (
        f"It does not denoise these data: at σ = {sigma[worst]:.2g} its error is {times:.3g} times that of {other}; its "
        "prediction, its schedule or its weights are not what its files say, or it was trained on other data."
    )


def _seeds(seed: int, start: int, count: int) -> Sequence[int]:
    return [derive(seed, 0x1ED6E2, k) for k in range(start, start + count)]


def _error(denoiser: Denoiser, x0: Tensor, eps: Tensor, level: float, cond: Cond, precision: str) -> Tensor:
    sigma = x0.new_full((len(x0),), level)
    asked = cond.until(JUST_BELOW * sigma) if isinstance(denoiser, TwoTimes) else cond
    with torch.autocast(x0.device.type, torch.bfloat16, precision == "bf16"):
        answer = denoiser(x0 + level * eps, sigma, asked)
    error: Tensor = (answer.float() - x0).square().flatten(1).mean(1)
    return error
