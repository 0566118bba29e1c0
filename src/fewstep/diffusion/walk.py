"""Walks: how a model is sampled. Frozen values; a walk's repr is what a receipt shows."""

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

ON_CPU = 125  # samples at once: of more, the system spends a third of a network's time on finding it memory
MOST_STEPS = 100_000  # no schedule has more timesteps
HEUN_TOP = 200.0  # Heun's levels below the first stay under it: higher up a trained denoiser sees noise alone


class Walk(Protocol):
    """From noise to a sample in `steps`: levels(denoiser) are where they begin, (steps,) float64, falling."""

    @property
    def steps(self) -> int: ...
    @property
    def calls(self) -> int:
        """Network calls that a sample takes."""

    def levels(self, denoiser: Denoiser) -> Tensor: ...

    def __call__(self, denoiser: Denoiser, x: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING) -> Tensor:
        """x0 (B, *) from the states x (B, *) at the first level; a generator a row, where fresh noise is drawn."""


@dataclass(frozen=True)
class Consistency:
    """A consistency function in `steps` calls, fresh noise between them, at the levels of its stock scheduler.

    Args:
        steps: network calls, any number.
        middle: noise level of the second of two steps, where the schedule lets it be chosen (EDM).
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
    """A diffusion model by first-order steps, evenly spaced in the schedule's own time: a call each."""


@dataclass(frozen=True)
class Segments(_FirstOrder):
    """A multistep consistency model along its segments, a DDIM step each: as many as it was tuned for."""


@dataclass(frozen=True)
class Heun:
    """A diffusion model by second-order steps on Karras' levels: 2·steps − 1 calls."""

    steps: int = 18

    def __post_init__(self) -> None:
        _at_least_one_call(self.steps)

    @property
    def calls(self) -> int:
        return 2 * self.steps - 1

    def levels(self, denoiser: Denoiser) -> Tensor:
        """Karras' levels within what the denoiser was trained on, the first of them at its sigma_max."""
        low, high = denoiser.schedule.sigma_min, denoiser.schedule.sigma_max
        levels = karras(self.steps, low, min(high, HEUN_TOP))
        levels[0] = high
        return levels

    def __call__(self, denoiser: Denoiser, x: Tensor, rngs: Sequence[torch.Generator], cond: Cond = NOTHING) -> Tensor:
        return samplers.heun(denoiser, x, self.levels(denoiser).to(x.dtype), cond)


def prior(denoiser: Denoiser, rngs: Sequence[torch.Generator]) -> Tensor:
    """States at sigma_max, a row a generator, (B, *) in float64 (where the device has it) on the denoiser's device."""
    return denoiser.schedule.prior_std * wide(normal(rngs, denoiser.space.shape, denoiser.device))


def sample(denoiser: Denoiser, seeds: Sequence[int], walk: Walk, cond: Cond = NOTHING, *, batch: int = 250) -> Tensor:
    """Samples number `seeds` from `denoiser`: each is a function of its seed, whatever the batch.

    Args:
        denoiser: the model, on its device.
        seeds: one a sample.
        walk: how.
        cond: one row a seed.
        batch: samples at once, at most 125 on a CPU.

    Returns:
        x0, float32 on the CPU, shape (len(seeds), *); `denoiser.space.decode` makes of it what a person sees.

    Raises:
        ValueError: no seed, no batch, or conditions that the denoiser does not take.
    """
    if batch < 1 or not len(seeds):
        raise ValueError(f"at least one sample, and one at once; got {len(seeds)} seeds and batch = {batch}")
    denoiser.check(cond)
    done = []
    size = min(batch, ON_CPU) if denoiser.device.type == "cpu" else batch
    for start in range(0, len(seeds), size):
        rows = slice(start, start + size)
        rngs = generators(seeds[rows])
        done.append(walk(denoiser, prior(denoiser, rngs), rngs, cond.part(rows).to(denoiser.device)).float().cpu())
    return torch.cat(done)


def _at_least_one_call(steps: int) -> None:
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:  # a note beside a model can say anything
        raise ValueError(f"a sample takes at least one network call and at most {MOST_STEPS:,} steps, got {steps!r}")
