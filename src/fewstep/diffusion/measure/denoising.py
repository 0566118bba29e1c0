"""Denoising error on real samples by noise level, which does not depend on a sampler."""

from __future__ import annotations

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

HIGHEST = 80.0  # above it the input is pure noise, and every denoiser returns the mean of the data
JUST_BELOW = 0.99  # lo over σ for a student of any number of calls, where it is a diffusion model


def levels_of(*denoisers: Denoiser, count: int = 12) -> Tensor:
    """Karras' levels, falling, within the range of all denoisers and at most 80, (count,) float64."""
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
    """The mean square of f(x0 + σ·eps, σ) − x0 for each row and level, (N, K).

    Row k has the same noise at all levels and for all denoisers, so that denoisers are compared in pairs.

    Args:
        denoiser: f, on its device. A `TwoTimes` is called with a segment that ends just below σ.
        x0: real samples (N, *).
        cond: conditions, N rows.
        levels: σ, (K,).
        seed: seed of the noise.
        batch: number of rows at once.
        precision: "no" (float32) or "bf16" in the network.
        first: number of the first row, if these are a part of all rows.

    Raises:
        ValueError: an output is not finite.
    """
    found = []
    with progress("denoising", len(x0) * len(levels)) as done:
        for start in range(0, len(x0), batch):
            rows = slice(start, start + batch)
            clean = x0[rows].to(denoiser.device)
            eps = noise_of(clean, seed, first + start)
            at_each = [
                _error(denoiser, clean, eps, float(level), cond.part(rows).to(clean.device), precision) for level in levels
            ]
            found.append(torch.stack(at_each, 1).cpu())
            done(len(clean) * len(levels))
    every: Array = torch.cat(found).double().numpy()
    broken = ~np.isfinite(every).all(0)
    if broken.any():
        level = float(levels[int(broken.argmax())])
        raise ValueError(f"a checkpoint returns numbers that are not finite at σ = {level:.2g}; its weights are broken")
    return every


def noise_of(x: Tensor, seed: int, start: int = 0) -> Tensor:
    """The noise of B rows from row `start` on, of the shape of x (B, *), the same for all denoisers."""
    seeds = [derive(seed, 0x1ED6E2, k) for k in range(start, start + len(x))]
    return normal(generators(seeds), x.shape[1:], x.device)


def _error(denoiser: Denoiser, x0: Tensor, eps: Tensor, level: float, cond: Cond, precision: str) -> Tensor:
    sigma = x0.new_full((len(x0),), level)
    asked = cond.until(JUST_BELOW * sigma) if isinstance(denoiser, TwoTimes) else cond
    with torch.autocast(x0.device.type, torch.bfloat16, precision == "bf16"):
        answer = denoiser(x0 + level * eps, sigma, asked)
    error: Tensor = (answer.float() - x0).square().flatten(1).mean(1)
    return error
