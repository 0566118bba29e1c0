"""Walks: how a model is sampled. They are frozen values, and receipts show their repr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.device import wide
from ..core.seeds import generators, normal
from . import samplers
from .cond import NOTHING, Cond
from .denoiser import Denoiser
from .noise import karras

ON_CPU = 125  # samples at once: with more, allocating memory takes a third of the time
MOST_STEPS = 100_000  # no schedule has more timesteps
HEUN_TOP = 200.0  # Heun's levels after the first stay below this: above it the input is pure noise


class Walk(Protocol):
    """Takes noise to a sample in `steps` steps, which begin at levels(denoiser): (steps,) float64, falling."""

    @property
    def steps(self) -> int: ...
    @property
    def calls(self) -> int:
        """Network calls per sample."""

    def levels(self, denoiser: Denoiser) -> Tensor: ...

    def __call__(self, denoiser: Denoiser, x: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING) -> Tensor:
        """Samples x0 (B, *) from states x (B, *) at the first level. `rngs` has one generator per row for fresh noise."""


@dataclass(frozen=True)
class Consistency:
    """Samples a consistency function in `steps` calls with fresh noise between them, at its stock scheduler's levels.

    Args:
        steps: number of network calls.
        middle: noise level of the second of two steps, for schedules that let it be chosen; see `consistency_grid`.
    """

    steps: int = 2
    middle: float | None = None

    def __post_init__(self) -> None:
        _at_least_one_call(self.steps)

    @property
    def calls(self) -> int:
        return self.steps

    def levels(self, denoiser: Denoiser) -> Tensor:
        return denoiser.schedule.consistency_grid(self.steps, self.middle, denoiser.identity)

    def __call__(self, denoiser: Denoiser, x: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING) -> Tensor:
        return samplers.consistency(denoiser, x, self.levels(denoiser).to(x.dtype), rngs, cond)


@dataclass(frozen=True)
class _FirstOrder:
    steps: int

    def __post_init__(self) -> None:
        _at_least_one_call(self.steps)

    @property
    def calls(self) -> int:
        return self.steps

    def levels(self, denoiser: Denoiser) -> Tensor:
        return denoiser.schedule.grid(self.steps)

    def __call__(self, denoiser: Denoiser, x: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING) -> Tensor:
        return samplers.ddim(denoiser, x, self.levels(denoiser).to(x.dtype), cond)


@dataclass(frozen=True)
class DDIM(_FirstOrder):
    """Samples a diffusion model by first-order steps on the schedule's `grid`, with one call per step."""


@dataclass(frozen=True)
class Segments(_FirstOrder):
    """Samples a multistep consistency model along its segments, with one DDIM step and one call for each."""


@dataclass(frozen=True)
class Heun:
    """Samples a diffusion model by second-order steps on Karras' levels, with 2·steps − 1 calls."""

    steps: int = 18

    def __post_init__(self) -> None:
        _at_least_one_call(self.steps)

    @property
    def calls(self) -> int:
        return 2 * self.steps - 1

    def levels(self, denoiser: Denoiser) -> Tensor:
        """Karras' levels between the schedule's sigma_min and at most HEUN_TOP; the first is sigma_max."""
        low, high = denoiser.schedule.sigma_min, denoiser.schedule.sigma_max
        levels = karras(self.steps, low, min(high, HEUN_TOP))
        levels[0] = high
        return levels

    def __call__(self, denoiser: Denoiser, x: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING) -> Tensor:
        return samplers.heun(denoiser, x, self.levels(denoiser).to(x.dtype), cond)


def prior(denoiser: Denoiser, rngs: Sequence[torch.Generator]) -> Tensor:
    """States at sigma_max, one row per generator, (B, *) on the denoiser's device, float64 where it has that."""
    return denoiser.schedule.prior_std * wide(normal(rngs, denoiser.space.shape, denoiser.device))


def sample(denoiser: Denoiser, seeds: Sequence[int], walk: Walk, cond: Cond = NOTHING, *, batch: int = 250) -> Tensor:
    """Draws one sample per seed. A sample depends on its seed and not on the batch.

    Args:
        denoiser: the model, on its device.
        seeds: one per sample.
        walk: how to sample.
        cond: conditions, one row per seed.
        batch: number of samples at once; on a CPU at most 125 are taken.

    Returns:
        x0, (len(seeds), *) float32 on the CPU; `denoiser.space.decode` makes pictures of them.

    Raises:
        ValueError: there is no seed, `batch` is below 1, or the denoiser does not take these conditions.
    """
    if batch < 1 or not len(seeds):
        raise ValueError(f"sampling needs at least one seed and batch >= 1, got {len(seeds)} seeds and batch = {batch}")
    denoiser.check(cond)
    done = []
    size = min(batch, ON_CPU) if denoiser.device.type == "cpu" else batch
    for start in range(0, len(seeds), size):
        rows = slice(start, start + size)
        rngs = generators(seeds[rows])
        done.append(walk(denoiser, prior(denoiser, rngs), rngs, cond.part(rows).to(denoiser.device)).float().cpu())
    return torch.cat(done)


def _at_least_one_call(steps: int) -> None:
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:  # it may come from a file
        raise ValueError(f"the number of steps must be between 1 and {MOST_STEPS:,}, got {steps!r}")
