"""Schedules: the noise levels of a network, how its input is scaled and which time it is given.

All noise levels are those of variance-exploding coordinates, x = x0 + sigma·eps: sigma (B,) is in units of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..core.device import wide
from .noise import karras

PURE_NOISE = 1e8  # stands for the infinite noise level of a schedule that ends without any signal
NO_OFFSET = 1e-6  # stands for sigma_min = 0, which the stock consistency scheduler does not take


class Schedule(Protocol):
    """The noise axis of a parametrisation, a frozen value. Receipts show its repr.

    Attributes:
        sigma_min, sigma_max: the lowest and the highest noise level of sampling.
        highest: the highest noise level that the network has a time for; infinite if its times do not end.
        sigma_data: standard deviation of the data as the parametrisation assumes it.
        origin: the network's input at x = 0; 0 if the network's data are centred.
    """

    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    @property
    def highest(self) -> float: ...
    @property
    def sigma_data(self) -> float: ...
    @property
    def origin(self) -> float: ...
    @property
    def prior_std(self) -> float:
        """Standard deviation of the state at sigma_max."""

    def scale(self, sigma: Tensor) -> Tensor:
        """The factor of x in the network's input scale·x + origin, of sigma's shape."""

    def time(self, sigma: Tensor) -> Tensor:
        """The time that the network is given, (B,)."""

    def grid(self, steps: int) -> Tensor:
        """`steps` noise levels from sigma_max down, without a final 0, evenly spaced in the schedule's own time; float64.

        They are the levels of diffusion sampling and the upper edges of a multistep consistency model's segments.
        """

    def consistency_grid(self, steps: int, middle: float | None, lowest: float) -> Tensor:
        """The noise levels (steps,), float64, at which the stock few-step scheduler calls a consistency function.

        Args:
            steps: number of network calls.
            middle: noise level of the second of two steps; None is the scheduler's own.
            lowest: noise level at which the function is the identity.

        Raises:
            ValueError: the schedule has fewer levels than steps, or `middle` cannot be set or is out of range.
        """


@dataclass(frozen=True)
class DiscreteVP:
    """Variance-preserving timesteps (DDPM and kin): with α = 1/√(1 + σ²) the network sees α·x and its timestep.

    Timestep i has σ = √((1−ᾱ_i)/ᾱ_i); between two timesteps the time is fractional, linear in ln σ. The fields are those
    of diffusers' DDPMScheduler, and so are the levels, including the last.

    Reference: Ho et al. 2020, DDPM, eq. 4; Lin et al. 2024, Common Diffusion Noise Schedules, for `rescale_betas_zero_snr`.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False

    sigma_data = 1.0
    origin = 0.0

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ValueError(f"a noise schedule needs at least two timesteps, got {self.num_train_timesteps}")
        levels = self.ln_sigmas
        if len(levels) != self.num_train_timesteps:
            raise ValueError(
                f"{len(levels)} trained_betas for {self.num_train_timesteps} timesteps; their numbers must agree"
            )
        if not (levels.isfinite().all() and (levels[1:] > levels[:-1]).all()):
            raise ValueError(f"the noise levels of {self} do not rise from timestep to timestep")

    @cached_property
    def betas(self) -> Tensor:
        """β of each timestep as diffusers computes it, (T,) float32."""
        from diffusers import DDPMScheduler

        betas = None if self.trained_betas is None else list(self.trained_betas)
        try:
            scheduler = DDPMScheduler(
                num_train_timesteps=self.num_train_timesteps, beta_start=self.beta_start, beta_end=self.beta_end,
                beta_schedule=self.beta_schedule, trained_betas=betas, rescale_betas_zero_snr=self.rescale_betas_zero_snr,
            )  # fmt: skip
        except (NotImplementedError, TypeError, RuntimeError) as error:
            raise ValueError(f"diffusers cannot make the noise schedule {self}: {error}") from error
        made: Tensor = scheduler.betas
        return made

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each timestep, (T,) float32."""
        return (1.0 - self.betas).cumprod(0)

    @cached_property
    def ln_sigmas(self) -> Tensor:
        """ln σ of each timestep, rising, (T,) float64 on the CPU; a last timestep without signal has σ = PURE_NOISE."""
        alphas = self.alphas_cumprod.double()
        ln_sigmas: Tensor = ((1 - alphas) / alphas).log() / 2
        if self.ends_in_pure_noise:
            ln_sigmas[-1] = max(math.log(PURE_NOISE), float(ln_sigmas[-2]) + 1)
        return ln_sigmas

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether the last timestep has no signal."""
        return float(self.alphas_cumprod[-1]) == 0

    @property
    def sigma_min(self) -> float:
        return max(0.002, float(self.ln_sigmas[0].exp()))

    @property
    def sigma_max(self) -> float:
        return float(self.ln_sigmas[-1].exp())

    highest = sigma_max

    @property
    def prior_std(self) -> float:
        return float((1 + self.sigma_max**2) ** 0.5)

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """The fractional timestep, within [0, T − 1]."""
        ln_sigma = wide(sigma).clamp(min=1e-8).log()
        levels = self.ln_sigmas.to(ln_sigma)
        above = torch.searchsorted(levels, ln_sigma).clamp(1, len(levels) - 1)
        lo, hi = levels[above - 1], levels[above]
        share = ((ln_sigma - lo) / (hi - lo)).clamp(0, 1)
        return above - 1 + share

    def grid(self, steps: int) -> Tensor:
        """Trailing timesteps round(T·(1 − i/n)) − 1, as diffusers' DDIMScheduler spaces them."""
        total = self.num_train_timesteps
        if steps > total:
            raise ValueError(f"this schedule has {total} timesteps, too few for {steps} steps")
        timesteps = (total - torch.arange(steps, dtype=torch.float64) * total / steps).round().long() - 1
        return self.ln_sigmas[timesteps].exp()

    def consistency_grid(self, steps: int, middle: float | None, lowest: float) -> Tensor:
        """Timesteps T − 1 − ⌊i·T/n⌋, as diffusers' LCMScheduler visits them."""
        if middle is not None:
            raise ValueError("the second step of a VP student starts at the middle timestep; leave `middle` out")
        total = self.num_train_timesteps
        if steps > total:
            raise ValueError(f"this schedule has {total} timesteps, too few for {steps} steps")
        return self.ln_sigmas[total - 1 - torch.arange(steps) * total // steps].exp()


@dataclass(frozen=True)
class Karras:
    """The noise axis of EDM: the network sees x/√(σ² + sd²) and time_scale·ln σ.

    Args:
        sigma_data: sd.
        sigma_min, sigma_max: noise levels at which sampling ends and begins.
        time_scale: .25 gives the paper's time, 250 that of diffusers' consistency scheduler.

    Reference: Karras et al. 2022, Elucidating the Design Space, table 1.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    time_scale: float = 250.0

    highest = math.inf
    origin = 0.0

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * sigma.clamp(min=1e-8).log()  # finite at sigma = 0, where c_out removes it

    def grid(self, steps: int) -> Tensor:
        """Karras' levels of steps + 1 without the last, because a call near 0 would be wasted."""
        return karras(steps + 1, self.sigma_min, self.sigma_max)[:-1]

    def consistency_grid(self, steps: int, middle: float | None, lowest: float) -> Tensor:
        """The levels of diffusers' CMStochasticIterativeScheduler; `middle` is .821 by default, as for CIFAR-10."""
        from diffusers import CMStochasticIterativeScheduler

        scheduler = CMStochasticIterativeScheduler(**self.consistency_settings(middle, lowest))
        scheduler.set_timesteps(steps)
        sigmas: Tensor = scheduler.sigmas
        return sigmas[:steps].double()

    def consistency_settings(self, middle: float | None, lowest: float) -> dict[str, float | bool]:
        """Settings of diffusers' consistency scheduler with which the second of two steps is at `middle`."""
        lowest = lowest or NO_OFFSET
        rho = _rho(0.821 if middle is None else middle, lowest, self.sigma_max)
        return {"sigma_min": lowest, "sigma_max": self.sigma_max, "sigma_data": self.sigma_data, "rho": rho,
                "clip_denoised": False}  # fmt: skip


def _rho(middle: float, sigma_min: float, sigma_max: float, timesteps: int = 40) -> float:
    """The rho of the consistency scheduler's Karras ramp with which the second of two steps is at `middle`."""
    from scipy.optimize import brentq

    ramp = (timesteps // 2) / (timesteps - 1)

    def sigma(rho: float) -> float:
        return float((sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho)

    lowest, highest = sigma(100.0), sigma(1.0)
    if not lowest < middle < highest:
        raise ValueError(f"the middle noise level must lie between {lowest:.3g} and {highest:.3g}, got {middle}")
    return float(brentq(lambda rho: sigma(rho) - middle, 1.0, 100.0, xtol=1e-12))


@dataclass(frozen=True)
class Rectified:
    """The noise axis of flow matching, u = σ/(1 + σ): the network sees (1 − u)·x and time_scale·u.

    Args:
        shift: s of a shifted schedule: sampling steps are even in u', where u = s·u'/(1 + (s − 1)·u').
        sigma_max: noise level at which sampling starts; u = 1 would be infinite.
        time_scale: 1000 for diffusers' flow schedulers.
        stretched: whether the steps are those of a scheduler that is given no levels. It spaces u' evenly down to 1/1000
            and then stretches 1 − u. The last step begins at the same level as without stretching, and those between move
            a little.

    Reference: Lipman et al. 2023, Flow Matching; Esser et al. 2024, Scaling Rectified Flow Transformers, eq. 23 (shift).
    """

    shift: float = 1.0
    sigma_max: float = 500.0
    sigma_min: float = 0.002
    time_scale: float = 1000.0
    stretched: bool = False

    sigma_data = 1.0
    origin = 0.0
    highest = math.inf

    @property
    def prior_std(self) -> float:
        return float((1 + self.sigma_max**2) ** 0.5)

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * sigma / (1 + sigma)

    def grid(self, steps: int) -> Tensor:
        """Levels evenly spaced in the unshifted u', from sigma_max down."""
        top = self.sigma_max / (1 + self.sigma_max)
        top = top / (self.shift - (self.shift - 1) * top)
        share = torch.arange(steps, dtype=torch.float64)
        u = self._shifted(top * (1 - share / steps))
        if self.stretched and steps > 2:
            lowest = self._shifted(torch.tensor(1 / self.time_scale, dtype=torch.float64))
            free = 1 - self._shifted(1 - share * (1 - lowest) / (steps - 1))
            u[1:] = 1 - free[1:] * (1 - u[-1]) / free[-1]
        return u / (1 - u)

    def _shifted(self, even: Tensor) -> Tensor:
        return self.shift * even / (1 + (self.shift - 1) * even)

    def consistency_grid(self, steps: int, middle: float | None, lowest: float) -> Tensor:
        """The levels of `grid`; no stock scheduler has others."""
        if middle is not None:
            raise ValueError("the steps of a flow student are even in u = σ/(1 + σ); leave `middle` out")
        return self.grid(steps)


def _through(grid: Tensor, middle: float | None) -> Tensor:
    """The falling `grid` with its second level at `middle`."""
    if middle is None or len(grid) < 2:
        return grid
    low, high = float(grid[2]) if len(grid) > 2 else 0.0, float(grid[0])
    if not low < middle < high:
        raise ValueError(f"the middle noise level must lie between {low:.3g} and {high:.3g}, got {middle}")
    return torch.cat([grid[:1], grid.new_tensor([middle]), grid[2:]])


@dataclass(frozen=True)
class TrigFlow:
    """The noise axis of TrigFlow, t = atan(σ/sd): the network sees x/√(σ² + sd²) and time_scale·t.

    Args:
        sigma_data: sd.
        sigma_min, sigma_max: noise levels at which sampling ends and begins; t = π/2 would be infinite.
        time_scale: 1 in the paper.

    Reference: Lu and Song 2024, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, sec. 3.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    time_scale: float = 1.0

    highest = math.inf
    origin = 0.0

    @property
    def prior_std(self) -> float:
        return math.hypot(self.sigma_data, self.sigma_max)

    def scale(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * (sigma / self.sigma_data).atan()

    def grid(self, steps: int) -> Tensor:
        """Levels evenly spaced in t, as in diffusers' SCMScheduler."""
        top = math.atan(self.sigma_max / self.sigma_data)
        return self.sigma_data * (top * (1 - torch.arange(steps, dtype=torch.float64) / steps)).tan()

    def consistency_grid(self, steps: int, middle: float | None, lowest: float) -> Tensor:
        """The levels of `grid`, with the second at `middle` if that is given."""
        return _through(self.grid(steps), middle)


@dataclass(frozen=True)
class Exploding:
    """The noise axis of variance-exploding score SDEs (NCSN++): the network sees pictures from 0 to 1 and its noise level.

    Here pictures lie between −1 and 1. With y = (x0 + 1)/2 the network sees y + σ/2·eps and is given σ/2. Below sigma_min
    it is given sigma_min/2, the lowest level that it was trained on.

    Args:
        sigma_min, highest: the noise levels that it was trained on; diffusers' ScoreSdeVeScheduler has half of each.

    Raises:
        ValueError: not 0 < sigma_min < min(80, highest).

    Reference: Song et al. 2021, Score-Based Generative Modeling through SDEs, app. C.
    """

    sigma_min: float = 0.02
    highest: float = 2696.0

    sigma_data = 0.5
    origin = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be above 0 and below both 80 and highest, got {self}")

    @property
    def sigma_max(self) -> float:
        """At most 80, where EDM begins: above it a picture is pure noise, and training hardly draws any level."""
        return min(80.0, self.highest)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.full_like(sigma, 0.5)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.clamp(min=self.sigma_min) / 2

    def grid(self, steps: int) -> Tensor:
        """Levels evenly spaced in ln σ, as in diffusers' ScoreSdeVeScheduler."""
        share = torch.arange(steps, dtype=torch.float64) / steps
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** share

    def consistency_grid(self, steps: int, middle: float | None, lowest: float) -> Tensor:
        """The levels of `grid`, with the second at `middle` if that is given."""
        return _through(self.grid(steps), middle)
