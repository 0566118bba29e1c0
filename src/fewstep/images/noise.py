"""Noise levels: sampling grids, the training distribution, and gaps (how far below t the target looks)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def like(a: Tensor, x: Tensor) -> Tensor:
    """`a` (B,) with as many trailing dimensions as `x` (B, *)."""
    return a.view(-1, *[1] * (x.ndim - 1))


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """`n` noise levels from sigma_max down to sigma_min, then 0: (n + 1,) float64.

    Reference: Karras et al. 2022, eq. 5.
    """
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


@dataclass(frozen=True)
class LogNormal:
    """The training distribution ln t ~ N(P_mean, P_std²), cut to [sigma_min, sigma_max].

    Reference: Karras et al. 2022, table 1; Geng et al. 2025.
    """

    P_mean: float = -1.1
    P_std: float = 2.0

    def __call__(self, z: Tensor, sigma_max: float, sigma_min: float = 1e-3) -> Tensor:
        """Noise levels (B,) from standard normal z (B,)."""
        return (self.P_mean + self.P_std * z).exp().clamp(sigma_min, sigma_max)


class Gap(Protocol):
    """Chooses r, the lower of the two noise levels: r(t, progress) < t, shape (B,), progress in [0, 1]."""

    def __call__(self, t: Tensor, progress: float) -> Tensor: ...


@dataclass(frozen=True)
class ECTGap:
    """Shrinks from r = 0 (diffusion) towards r = t with progress; every stage divides the gap by q.

    r = max(0, t·(1 − (1 + k·sigmoid(−b·t))/q^(stage + 1))), stage = floor(stages·progress).

    Reference: Geng et al. 2025, Consistency Models Made Easy, sec. 3.2.
    """

    q: float = 2.0
    stages: int = 8
    k: float = 8.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not (self.q > 1 and self.stages >= 1):
            raise ValueError(f"a gap needs q > 1 and at least one stage, got q = {self.q}, stages = {self.stages}")

    def __call__(self, t: Tensor, progress: float) -> Tensor:
        stage = min(int(self.stages * progress), self.stages - 1)
        closeness = (1 + self.k * torch.sigmoid(-self.b * t)) / self.q ** (stage + 1)
        return (t * (1 - closeness)).clamp(min=0)


@dataclass(frozen=True)
class FullGap:
    """r = 0 always: the target is the clean sample and the loss is plain denoising."""

    def __call__(self, t: Tensor, progress: float) -> Tensor:
        return torch.zeros_like(t)
