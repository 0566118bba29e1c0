"""Samplers, each with its own loop. The state keeps the dtype that the caller gives.

A `grid` holds noise levels from high to low. It should be on the CPU, so that no step has to wait for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.seeds import normal
from .cond import NOTHING, Cond
from .denoiser import Denoise
from .loss import ddim as ddim_step


@torch.no_grad()
def consistency(
    denoiser: Denoise, x: Tensor, grid: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING
) -> Tensor:
    """Few-step sampling of a consistency function: denoise, add fresh noise, denoise again.

    Args:
        denoiser: a consistency function.
        x: the state at grid[0], (B, *).
        grid: noise levels, falling, (n,), without a final 0. NFE = n.
        rngs: one generator per row, for the fresh noise.
        cond: conditions for the denoiser, B rows.

    Returns:
        The samples x0, (B, *).

    Reference: Song et al. 2023, Consistency Models, alg. 1, with sigma_min = 0.
    """
    cond = cond.until(_level(grid.new_zeros(()), x))
    x0 = denoiser(x, _level(grid[0], x), cond)
    for sigma in grid[1:]:
        x = x0 + sigma.to(x) * normal(rngs, x.shape[1:], x.device).to(x.dtype)
        x0 = denoiser(x, _level(sigma, x), cond)
    return x0


@torch.no_grad()
def ddim_path(denoiser: Denoise, x: Tensor, grid: Tensor, cond: Cond = NOTHING) -> Iterator[tuple[Tensor, Tensor]]:
    """Deterministic first-order sampling (DDIM, Euler) along `grid` (n,), then to 0. NFE = n.

    On the grid of its segments it samples a multistep consistency model, which is told where each segment ends.

    Yields:
        After each step the state (B, *) at its end and the estimate of x0 that it used, (B, *).

    Reference: Song et al. 2021, Denoising Diffusion Implicit Models, eq. 12 with eta = 0.
    """
    for sigma, lower in _steps(grid):
        x0 = denoiser(x, _level(sigma, x), cond.until(_level(lower, x)))
        x = ddim_step(x, x0, _level(sigma, x), _level(lower, x))
        yield x, x0


@torch.no_grad()
def heun_path(denoiser: Denoise, x: Tensor, grid: Tensor, cond: Cond = NOTHING) -> Iterator[tuple[Tensor, Tensor]]:
    """Deterministic second-order sampling along `grid` (n,), then to 0. NFE = 2n − 1.

    Yields:
        After each step the state (B, *) at its end and the estimate of x0 at its start, (B, *).

    Reference: Karras et al. 2022, Elucidating the Design Space, alg. 1.
    """
    for sigma, lower in _steps(grid):
        x0 = denoiser(x, _level(sigma, x), cond)
        slope = (x - x0) / sigma.to(x)
        euler = x + (lower - sigma).to(x) * slope
        if lower > 0:
            end_slope = (euler - denoiser(euler, _level(lower, x), cond)) / lower.to(x)
            euler = x + (lower - sigma).to(x) * (slope + end_slope) / 2
        x = euler
        yield x, x0


def ddim(denoiser: Denoise, x: Tensor, grid: Tensor, cond: Cond = NOTHING) -> Tensor:
    """The end of `ddim_path`: x0 (B, *)."""
    return _end(ddim_path(denoiser, x, grid, cond))


def heun(denoiser: Denoise, x: Tensor, grid: Tensor, cond: Cond = NOTHING) -> Tensor:
    """The end of `heun_path`: x0 (B, *)."""
    return _end(heun_path(denoiser, x, grid, cond))


def _steps(grid: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(grid, [*grid[1:], grid.new_zeros(())], strict=True)


def _end(path: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    ((x0, _),) = deque(path, maxlen=1)
    return x0


def _level(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x).expand(len(x))
