"""Hops by a teacher: one step of its ODE from x_t to x_r, as consistency distillation takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cond import NOTHING, Cond
from .denoiser import Denoise, Denoiser
from .loss import ddim
from .noise import like


@dataclass(frozen=True)
class Euler:
    """One DDIM step towards the teacher's estimate, with one teacher call per row.

    Reference: Song et al. 2023, Consistency Models, on consistency distillation.
    """

    teacher: Denoise = field(repr=False)

    def __call__(self, x_t: Tensor, x0: Tensor, t: Tensor, r: Tensor, cond: Cond = NOTHING) -> Tensor:
        return ddim(x_t, self.teacher(x_t, t, cond), t, r)


@dataclass(frozen=True)
class Heun:
    """One second-order step of the teacher's ODE; rows with r = 0 stay first-order. It makes two teacher calls per row.

    Reference: Karras et al. 2022, Elucidating the Design Space, alg. 1.
    """

    teacher: Denoise = field(repr=False)

    def __call__(self, x_t: Tensor, x0: Tensor, t: Tensor, r: Tensor, cond: Cond = NOTHING) -> Tensor:
        slope = (x_t - self.teacher(x_t, t, cond)) / like(t, x_t)
        euler = x_t + like(r - t, x_t) * slope
        above = torch.where(r > 0, r, t)  # rows with r = 0 are not used; t keeps them finite
        end_slope = (euler - self.teacher(euler, above, cond)) / like(above, x_t)
        return torch.where(like(r > 0, x_t), x_t + like(r - t, x_t) * (slope + end_slope) / 2, euler)


@dataclass(frozen=True)
class ADDIM:
    """A DDIM step that restores the variance that is lost because x̂ is a mean.

    x_r = x̂ + √(r² + d/‖ε̂‖²·z_var)·ε̂ with ε̂ = (x_t − x̂)/t, z_var = (1 − r/t)²·x_var, for samples of d values. x_var is
    η·‖x̂ − x0‖²/d, or 0.1/(2 + 1/t²) if `analytic`. With a guided teacher the unguided estimate gives x_var.

    Reference: Heek et al. 2024, Multistep Consistency Models, on adjusted DDIM (aDDIM).
    """

    teacher: Denoiser = field(repr=False)
    eta: float = 0.75
    analytic: bool = False

    def __call__(self, x_t: Tensor, x0: Tensor, t: Tensor, r: Tensor, cond: Cond = NOTHING) -> Tensor:
        estimate, unguided = self.teacher.unguided(x_t, t, cond)
        x_var = 0.1 / (2 + t**-2) if self.analytic else self.eta * (unguided - x0).flatten(1).square().mean(1)
        eps = (x_t - estimate) / like(t, x_t)
        z_var = (1 - r / t) ** 2 * x_var
        scale = (r**2 + z_var / eps.flatten(1).square().mean(1)).sqrt()
        return estimate + like(scale, x_t) * eps
