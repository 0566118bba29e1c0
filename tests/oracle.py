"""Things known exactly: the best denoiser of Gaussian data, its consistency function, and networks that compute it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.diffusion.cond import NOTHING, Cond
from fewstep.diffusion.noise import like


@dataclass(frozen=True)
class GaussianOracle:
    """Exact denoiser and exact consistency function of data ~ N(mean, std² I)."""

    mean: float = 0.3
    std: float = 0.5

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        s = like(sigma, x)
        return self.mean + self.std**2 / (self.std**2 + s**2) * (x - self.mean)

    def unguided(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> tuple[Tensor, Tensor]:
        return self(x, sigma), self(x, sigma)

    def consistency(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        s = like(sigma, x)
        return self.mean + self.std / (self.std**2 + s**2).sqrt() * (x - self.mean)


class OracleNetwork(nn.Module):
    """What a perfectly trained network of some parametrisation outputs on that data.

    `to_sigma` inverts the parametrisation's time, `to_x` its input scale, `output` takes (x, x0, sigma).
    """

    def __init__(self, to_sigma, to_x, output) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.to_sigma, self.to_x, self.output = to_sigma, to_x, output

    def forward(self, inputs: Tensor, time: Tensor) -> Tensor:
        sigma = self.to_sigma(time)
        x = self.to_x(inputs, like(sigma, inputs))
        return self.output(x, GaussianOracle()(x, sigma), like(sigma, x))
