"""Noise levels: sampling grids, training distributions, and the gaps between the two levels of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.device import wide


def like(a: Tensor, x: Tensor) -> Tensor:
    """`a` (B,) with as many trailing dimensions as `x` (B, *)."""
    return a.view(-1, *[1] * (x.ndim - 1))


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """`n` noise levels from sigma_max down to sigma_min, (n,) float64.

    Reference: Karras et al. 2022, eq. 5.
    """
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas: Tensor = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return sigmas


class Noise(Protocol):
    """The distribution of t: noise levels (B,) of at most sigma_max from standard normal z (B,)."""

    def __call__(self, z: Tensor, sigma_max: float) -> Tensor: ...


@dataclass(frozen=True)
class LogNormal:
    """The training distribution ln t ~ N(P_mean, P_std²).

    As in the published code low levels are not clamped. High ones are clamped to sigma_max, the end of the network's
    schedule. EDM networks have no such end, although sampling begins at 80.

    Reference: Karras et al. 2022, table 1; Geng et al. 2025.
    """

    P_mean: float = -1.1
    P_std: float = 2.0

    def __call__(self, z: Tensor, sigma_max: float = math.inf) -> Tensor:
        """Noise levels (B,) from standard normal z (B,)."""
        return (self.P_mean + self.P_std * z).exp().clamp(max=sigma_max)


@dataclass(frozen=True)
class Levels:
    """A uniform distribution over the given levels, such as those that a sampler visits."""

    levels: tuple[float, ...]

    def __call__(self, z: Tensor, sigma_max: float) -> Tensor:
        """Noise levels (B,) from standard normal z (B,)."""
        place = (torch.special.ndtr(wide(z)) * len(self.levels)).long().clamp(max=len(self.levels) - 1)
        return torch.tensor(self.levels, dtype=z.dtype, device=z.device)[place]


class Gap(Protocol):
    """The lower noise level r of the loss: 0 <= r(t, progress) < t, shape (B,), progress in [0, 1].

    Where r lies below the segment of t, the loss uses the segment's lower edge instead.
    """

    def __call__(self, t: Tensor, progress: float) -> Tensor: ...


@dataclass(frozen=True)
class ECTGap:
    """A gap that shrinks with progress, from r = 0 (diffusion) towards r = t; every stage divides it by q.

    r = max(0, t·(1 − (1 + k·sigmoid(−b·t))/q^(stage + 1))), stage = floor(stages·progress).

    Reference: Geng et al. 2025, Consistency Models Made Easy, sec. 3.2.
    """

    q: float = 2.0
    stages: int = 8
    k: float = 8.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not (self.q > 1 and self.stages >= 1):
            raise ValueError(f"the ect gap needs q > 1 and at least one stage, got q = {self.q}, stages = {self.stages}")
        if self.stages * math.log2(self.q) > 20:
            raise ValueError(
                f"a gap of 1/q^stages = 1/{self.q:g}^{self.stages} is below what float32 resolves; use fewer stages"
            )

    def __call__(self, t: Tensor, progress: float) -> Tensor:
        stage = min(int(self.stages * progress), self.stages - 1)
        closeness = (1 + self.k * torch.sigmoid(-self.b * t)) / self.q ** (stage + 1)
        return (t * (1 - closeness)).clamp(min=0)


@dataclass(frozen=True)
class FullGap:
    """A gap with r = 0: the target is the clean sample, and the loss is plain denoising."""

    def __call__(self, t: Tensor, progress: float) -> Tensor:
        return torch.zeros_like(t)


@dataclass(frozen=True)
class CosineGap:
    """One step of a grid of N steps that are even in the cosine schedule's time u = (2/π)·atan t: r = tan(π/2·(u − 1/N)).

    N grows log-linearly from `first` to `last` steps while progress goes from 0 to `anneal`; first = last keeps it fixed.

    Reference: Heek et al. 2024, Multistep Consistency Models (teacher steps 64 to 1280).
    """

    first: int = 64
    last: int = 1280
    anneal: float = 1.0

    def __post_init__(self) -> None:
        if not (self.first >= 1 and self.last >= 1 and 0 < self.anneal <= 1):
            raise ValueError(f"a grid needs at least one step and 0 < anneal <= 1, got {self}")

    def __call__(self, t: Tensor, progress: float) -> Tensor:
        steps: float = self.first * (self.last / self.first) ** min(progress / self.anneal, 1.0)
        angle = wide(t).atan() - math.pi / 2 / steps
        return angle.clamp(min=0).tan().to(t.dtype)


@dataclass(frozen=True)
class KarrasGap:
    """One step of Karras' grid of N steps; N doubles from `first` to `last` with progress.

    r^(1/ρ) = t^(1/ρ) − (σ_max^(1/ρ) − σ_min^(1/ρ))/N, and 0 below σ_min.

    Reference: Song and Dhariwal 2024, Improved Techniques for Training Consistency Models (10 to 1280).
    """

    first: int = 10
    last: int = 1280
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"a grid needs 1 <= first <= last steps, got {self.first} and {self.last}")

    def __call__(self, t: Tensor, progress: float) -> Tensor:
        doublings = math.floor(math.log2(self.last / self.first)) + 1
        steps = min(self.first * 2 ** int(doublings * progress), self.last)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        root = wide(t) ** (1 / self.rho) - (high - low) / steps
        return torch.where(root > low, root, 0).pow(self.rho).to(t.dtype)
