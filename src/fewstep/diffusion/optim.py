"""Learning rates, optimizers, averages, dropout: small settings that do the thing themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn


class LearningRate(Protocol):
    """The learning rate at `step` (counted from 0) when `progress` (0 to 1) of the images have been seen."""

    def __call__(self, step: int, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    rate: float = 1e-4

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def __call__(self, step: int, progress: float) -> float:
        return self.rate


@dataclass(frozen=True)
class Cosine:
    """Rises linearly over `warmup` steps and falls to 0 along half a cosine."""

    rate: float = 1e-3
    warmup: int = 0

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if self.warmup < 0:
            raise ValueError(f"the rate rises over 0 or more steps, got warmup = {self.warmup}")

    def __call__(self, step: int, progress: float) -> float:
        return self.rate * min(1.0, (step + 1) / (self.warmup + 1)) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class InverseSqrt:
    """rate/√max(step/reference, 1). Reference: Karras et al. 2024, EDM2."""

    rate: float = 1e-3
    reference: int = 2000

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def __call__(self, step: int, progress: float) -> float:
        return self.rate / math.sqrt(max(step / self.reference, 1))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"the learning rate must be 0 or more, got {rate}")


class OptimizerFactory(Protocol):
    """Builds an optimizer; tune() sets its learning rate at every step."""

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class RAdam:
    """Rectified Adam without weight decay. Reference: Liu et al. 2020, On the Variance of the Adaptive Learning Rate."""

    betas: tuple[float, float] = (0.9, 0.999)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(parameters, betas=self.betas, foreach=True)


@dataclass(frozen=True)
class Adam:
    """Adam without weight decay. Reference: Kingma and Ba 2015, Adam."""

    betas: tuple[float, float] = (0.9, 0.99)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, betas=self.betas, foreach=True)


class Average(Protocol):
    """The decay (0 to 1) of the moving average at its update number `updates`, counted from 1."""

    def __call__(self, updates: int) -> float: ...


@dataclass(frozen=True)
class Exponential:
    """The same decay throughout."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"the decay of the moving average must lie in [0, 1), got {self.decay}")

    def __call__(self, updates: int) -> float:
        return self.decay


@dataclass(frozen=True)
class PowerFunction:
    """Averages over a fixed share of the run so far, however long it gets: decay (1 − 1/n)^(γ + 1).

    `std` is the standard deviation of the averaged times relative to the run's length, between 0 and .28;
    it fixes γ by std² = (γ + 1)/((γ + 2)²(γ + 3)).

    Reference: Karras et al. 2024, EDM2, on post-hoc EMA.
    """

    std: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.std < 0.28:
            raise ValueError(f"the relative width of the moving average must lie between 0 and .28, got {self.std}")

    @property
    def gamma(self) -> float:
        from numpy import roots

        inverse = self.std**-2  # γ³ + 7γ² + (16 − 1/std²)γ + 12 − 1/std² = 0
        return float(roots([1, 7, 16 - inverse, 12 - inverse]).real.max())

    def __call__(self, updates: int) -> float:
        return float((1 - 1 / updates) ** (self.gamma + 1))


@dataclass(frozen=True)
class Dropout:
    """Dropout of `probability` in every dropout layer, or only where a UNet's feature maps are at most `max_size` wide.

    Reference: Hoogeboom et al. 2023, simple diffusion, for dropout at low resolutions only.
    """

    probability: float = 0.2
    max_size: int | None = None

    def __call__(self, network: Any) -> None:
        """Sets the layers of `network`, a UNet2DModel if `max_size` is given, else any module."""
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = self.probability
        if self.max_size is None:
            return
        if not hasattr(network, "down_blocks"):
            raise ValueError(f"dropout by size needs a UNet, this is a {type(network).__name__}; use another recipe")
        wide = [i for i in range(len(network.down_blocks)) if network.config["sample_size"] >> i > self.max_size]
        for block in [b for i in wide for b in (network.down_blocks[i], network.up_blocks[-1 - i])]:
            Dropout(0.0)(block)
