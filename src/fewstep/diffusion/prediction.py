"""Predictions: the clean sample from a network's output, (x, output, sigma) -> x0_hat.

x = x0 + sigma·eps is the noisy sample in variance-exploding coordinates, (B, *); sigma has as many dimensions, (B, 1, …).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Prediction = Callable[[Tensor, Tensor, Tensor], Tensor]


def epsilon(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The output is the noise: x0 = x − σ·eps. Reference: Ho et al. 2020, DDPM, eq. 11."""
    return x - sigma * output


def v_prediction(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The output is v = α·eps − √(1 − α²)·x0 with α = 1/√(1 + σ²): x0 = α²·x − α·σ·v.

    Reference: Salimans and Ho 2022, Progressive Distillation, app. D.
    """
    alpha = (1 + sigma**2).rsqrt()
    return alpha**2 * x - alpha * sigma * output


def velocity(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The output is v = eps − x0 along z = (1 − u)·x0 + u·eps, u = σ/(1 + σ): x0 = z − u·v, z = x/(1 + σ).

    Reference: Lipman et al. 2023, Flow Matching; Liu et al. 2023, Rectified Flow.
    """
    return (x - sigma * output) / (1 + sigma)


def unit_score(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The output is the score ∇ ln p of pictures y = (x + 1)/2 from 0 to 1 with noise σ/2: x0 = x + σ²/2·score.

    Reference: Song et al. 2021, Score-Based Generative Modeling through SDEs, eq. 3.
    """
    return x + sigma**2 / 2 * output


def clean(x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The output is the clean sample. Such a model can be sampled but not tuned, because f(x, 0) is not x."""
    return output


@dataclass(frozen=True)
class Preconditioned:
    """x0 = c_skip·x + c_out·F with c_skip = sd²/((σ−δ)² + sd²), c_out = (σ−δ)·sd/√(σ² + sd²).

    Args:
        sigma_data: sd.
        offset: δ, where f is the identity: 0 for diffusion checkpoints, sigma_min for published consistency models.

    Reference: Karras et al. 2022, Elucidating the Design Space, table 1; Song et al. 2023, Consistency Models, app. C.
    """

    sigma_data: float = 0.5
    offset: float = 0.0

    def __call__(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        above, sd2 = sigma - self.offset, self.sigma_data**2
        return sd2 / (above**2 + sd2) * x + above * self.sigma_data / (sigma**2 + sd2).sqrt() * output


@dataclass(frozen=True)
class Trigonometric:
    """x0 = cos t·x_t − sin t·sd·F with x_t = cos t·x and t = atan(σ/sd).

    Args:
        sigma_data: sd.

    Reference: Lu and Song 2024, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, eq. 4.
    """

    sigma_data: float = 0.5

    def __call__(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        return Preconditioned(self.sigma_data)(x, -output, sigma)  # cos² t is its c_skip, sin t·sd its c_out
