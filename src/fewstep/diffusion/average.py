"""Moving averages of the weights and their decays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..core.spread import spread_as, whole

Model = TypeVar("Model", bound=nn.Module)


class Average(Protocol):
    """The decay, 0 to 1, of the moving average at update number `updates`, counted from 1."""

    def __call__(self, updates: int) -> float: ...


@dataclass(frozen=True)
class Exponential:
    """A constant decay, as suits a start from a checkpoint.

    After n updates the starting weights have a share decay^n in the average: 63 % after 469 updates with .999. Random
    starting weights must be forgotten sooner: with `warmup` the decay is at most (1 + n)/(10 + n) at update n.
    """

    decay: float = 0.9999
    warmup: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"the decay of the moving average must lie in [0, 1), got {self.decay}")

    def __call__(self, updates: int) -> float:
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay


@dataclass(frozen=True)
class PowerFunction:
    """An average over a fixed share of the run so far: decay (1 − 1/n)^(γ + 1) at update n.

    `std`, between 0 and .28, is the standard deviation of the averaged times relative to the run's length. It determines γ
    by std² = (γ + 1)/((γ + 2)²(γ + 3)). The first update replaces the starting weights.

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


class MovingAverage:
    """The moving average of a model's weights, starting with the present ones.

    Published recipes start with the checkpoint too. An average that started after the first step would keep much of that
    step, and the first steps of RAdam are poor, because they follow the bare gradient.

    Attributes:
        weights: average of the parameters that train, by name; sharded over processes like the model's.
        buffers: buffers of the model at the last update.
        updates: number of updates.
    """

    def __init__(self, model: nn.Module, average: Average) -> None:
        self.weights = {name: nn.Parameter(p.detach().clone()) for name, p in trained(model).items()}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.updates = 0
        self._average = average

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the model's weights to the average and copies its buffers."""
        self.updates += 1
        mix = get_ema_multi_avg_fn(self._average(self.updates))
        mix(list(self.weights.values()), list(trained(model).values()), None)
        for ours, theirs in zip(self.buffers.values(), model.buffers(), strict=True):
            ours.copy_(theirs)

    def model(self, form: Model, model: nn.Module) -> Model:
        """The average as a copy of `form`, in evaluation mode. Every process must call this.

        It shares tensors with the average and, where parameters are frozen, with `model`. Sharded tensors are gathered on
        the CPU.
        """
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        return copied(form, whole(frozen | self.weights | self.buffers)).eval()

    def state(self) -> dict[str, Any]:
        """The average and its number of updates, for `load`. Every process must call this."""
        return {"updates": self.updates, "weights": whole({name: p.detach() for name, p in self.weights.items()})}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Restores the `state()` of an average of the same model."""
        self.updates = state["updates"]
        assert self.weights.keys() == state["weights"].keys()
        for name, p in self.weights.items():
            p.copy_(spread_as(state["weights"][name], p))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copied(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """A copy of `model` in which `tensors` replace the parameters and buffers of the same names."""
    ours: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return copy.deepcopy(model, {id(ours[name]): tensor for name, tensor in tensors.items()})


def form_of(model: Model) -> Model:
    """A copy of `model` on the meta device, which takes no memory."""
    ours: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return copied(model, {name: tensor.detach().to("meta") for name, tensor in ours.items()})
