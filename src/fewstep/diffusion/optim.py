"""Learning rates, optimizers and dropout, as settings that can be called."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .cond import NOTHING, Cond, labelled


class LearningRate(Protocol):
    """The learning rate at `step` (counted from 0) after the share `progress` (0 to 1) of the images."""

    def __call__(self, step: int, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same learning rate throughout."""

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
            raise ValueError(f"the warm-up must be 0 or more steps, got {self.warmup}")

    def __call__(self, step: int, progress: float) -> float:
        return self.rate * min(1.0, (step + 1) / (self.warmup + 1)) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class InverseSqrt:
    """The rate is rate/√max(step/reference, 1). Reference: Karras et al. 2024, EDM2."""

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


@dataclass(frozen=True)
class Dropout:
    """Dropout of `probability` in every dropout layer, or only where a UNet's feature maps are at most `max_size` wide.

    Reference: Hoogeboom et al. 2023, simple diffusion, for dropout at low resolutions only.
    """

    probability: float = 0.2
    max_size: int | None = None

    def __call__(self, network: Any) -> None:
        """Sets the dropout layers of `network`, which must be a UNet2DModel if `max_size` is given."""
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


def label_dropout(network: nn.Module) -> tuple[float, Cond]:
    """The probability of label dropout of a diffusers transformer, and its null condition; (0, `Cond()`) for others."""
    layers = _label_embeddings(network)
    return (layers[0].dropout_prob, labelled(torch.tensor([layers[0].num_classes]))) if layers else (0.0, NOTHING)


def training_mode(network: nn.Module) -> None:
    """Puts `network` in training mode, except its label embeddings.

    Each block of a DiT has a label embedding, which in training mode drops labels by its own draw. With 28 blocks hardly
    any row would have the same label in all of them. So `tune` drops labels for the whole network (see `label_dropout`).
    """
    network.train()
    for layer in _label_embeddings(network):
        layer.eval()


def _label_embeddings(network: nn.Module) -> list[Any]:
    from diffusers.models.embeddings import LabelEmbedding

    return [layer for layer in network.modules() if isinstance(layer, LabelEmbedding)]
