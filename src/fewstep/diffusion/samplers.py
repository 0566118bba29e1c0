"""Samplers: each owns its loop. `grid`s are noise levels from high to low; the state is float64."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..core.seeds import generators, normal
from .denoiser import Denoiser, NetworkDenoiser
from .loss import ddim as ddim_step
from .noise import karras

Sampler = Callable[..., Tensor]  # (denoiser, x, grid, rngs, **cond) -> x0


@torch.no_grad()
def consistency(denoiser: Denoiser, x: Tensor, grid: Tensor, rngs: Sequence[torch.Generator], **cond: Tensor) -> Tensor:
    """Few-step sampling of a consistency function: denoise, add fresh noise, denoise again.

    Args:
        denoiser: a consistency function.
        x: the state at grid[0], (B, *).
        grid: noise levels, falling, (n,), without a final 0. NFE = n.
        rngs: a generator for each row, for the fresh noise.
        cond: passed to the denoiser.

    Returns:
        The samples x0, (B, *).

    Reference: Song et al. 2023, Consistency Models, alg. 1, with sigma_min = 0.
    """
    x0 = denoiser(x, _level(grid[0], x), **cond)
    for sigma in grid[1:]:
        x = x0 + sigma.to(x) * normal(rngs, x.shape[1:], x.device).to(x.dtype)
        x0 = denoiser(x, _level(sigma, x), **cond)
    return x0


@torch.no_grad()
def ddim_path(denoiser: Denoiser, x: Tensor, grid: Tensor, **cond: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Deterministic first-order sampling (DDIM, Euler) along `grid` (n,), then to 0. NFE = n.

    On the grid of its segments this samples a multistep consistency model.

    Yields:
        After each step the state (B, *) it reached and the estimate of x0 it went by.

    Reference: Song et al. 2021, Denoising Diffusion Implicit Models, eq. 12 with eta = 0.
    """
    for sigma, lower in _steps(grid):
        x0 = denoiser(x, _level(sigma, x), **cond)
        x = ddim_step(x, x0, _level(sigma, x), _level(lower, x))
        yield x, x0


@torch.no_grad()
def heun_path(denoiser: Denoiser, x: Tensor, grid: Tensor, **cond: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Deterministic second-order sampling along `grid` (n,), then to 0. NFE = 2n − 1.

    Yields:
        After each step the state (B, *) it reached and the estimate of x0 it started with.

    Reference: Karras et al. 2022, Elucidating the Design Space, alg. 1.
    """
    for sigma, lower in _steps(grid):
        x0 = denoiser(x, _level(sigma, x), **cond)
        slope = (x - x0) / sigma.to(x)
        euler = x + (lower - sigma).to(x) * slope
        if lower > 0:
            end_slope = (euler - denoiser(euler, _level(lower, x), **cond)) / lower.to(x)
            euler = x + (lower - sigma).to(x) * (slope + end_slope) / 2
        x = euler
        yield x, x0


def ddim(denoiser: Denoiser, x: Tensor, grid: Tensor, rngs: Sequence[torch.Generator] = (), **cond: Tensor) -> Tensor:
    """The end of `ddim_path`: x0 (B, *). `rngs` is not used."""
    return _end(ddim_path(denoiser, x, grid, **cond))


def heun(denoiser: Denoiser, x: Tensor, grid: Tensor, rngs: Sequence[torch.Generator] = (), **cond: Tensor) -> Tensor:
    """The end of `heun_path`: x0 (B, *). `rngs` is not used."""
    return _end(heun_path(denoiser, x, grid, **cond))


def heun_grid(denoiser: NetworkDenoiser, steps: int) -> Tensor:
    """Karras' noise levels within what the denoiser was trained on, (steps,): where Heun's method is at home."""
    return karras(steps, denoiser.sigma_min, denoiser.sigma_max)


def calls_each(sampler: Sampler, grid: Tensor) -> int:
    """Network calls that `sampler` makes for a sample on `grid`."""
    return 2 * len(grid) - 1 if sampler is heun else len(grid)


def prior(denoiser: NetworkDenoiser, rngs: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """States at sigma_max, a row a generator, (B, *shape) float64 on the denoiser's device."""
    return denoiser.prior_std * normal(rngs, shape, next(denoiser.network.parameters()).device).double()


def sample(
    denoiser: NetworkDenoiser,
    seeds: Sequence[int],
    shape: Sequence[int],
    sampler: Sampler,
    grid: Tensor,
    *,
    batch: int = 250,
    **cond: Tensor,
) -> Tensor:
    """Samples number `seeds` from `denoiser`: each is a function of its seed, whatever the batch.

    Args:
        denoiser: the model, on its device.
        seeds: one a sample.
        shape: of a sample, (C, H, W).
        sampler: `consistency`, `heun` or `ddim`.
        grid: noise levels for the sampler, from the denoiser's sigma_max down.
        batch: samples at once.
        cond: one row a seed.

    Returns:
        x0, float32 on the CPU, shape (len(seeds), *shape).

    Raises:
        ValueError: no batch, no step, or a class that the network does not know.
    """
    if batch < 1 or not len(grid):
        raise ValueError(f"at least one image at once and one step, got batch = {batch} and {len(grid)} steps")
    if "class_labels" in cond:
        denoiser.check_labels(cond["class_labels"])
    device = next(denoiser.network.parameters()).device
    done = []
    for start in range(0, len(seeds), batch):
        rngs = generators(seeds[start : start + batch])
        x = prior(denoiser, rngs, shape)
        rows = {name: value[start : start + batch].to(device) for name, value in cond.items()}
        done.append(sampler(denoiser, x, grid.to(device), rngs, **rows).float().cpu())
    return torch.cat(done)


def _steps(grid: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(grid, [*grid[1:], grid.new_zeros(())], strict=True)


def _end(path: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    ((x0, _),) = deque(path, maxlen=1)
    return x0


def _level(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x).expand(len(x))
