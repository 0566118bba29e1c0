"""Moving averages of the weights: how fast they forget, and the average itself."""

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
    """The decay (0 to 1) of the moving average at its update number `updates`, counted from 1."""

    def __call__(self, updates: int) -> float: ...


@dataclass(frozen=True)
class Exponential:
    """The same decay throughout, which suits a start from a checkpoint.

    After n updates a share decay^n of the average is still the start: 63 % after 469 updates of .999. A random start must
    be forgotten. There `warmup` begins with shorter averages: at update n the decay is at most (1 + n)/(10 + n).
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
    """Averages over a fixed share of the run so far, however long it gets: decay (1 − 1/n)^(γ + 1).

    `std` is the standard deviation of the averaged times relative to the run's length, between 0 and .28;
    it fixes γ by std² = (γ + 1)/((γ + 2)²(γ + 3)). The first update forgets the start.

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
    """The moving average of a model's weights, beginning with those that the model has now.

    Published recipes begin with the checkpoint, too. A copy that is made after the first step keeps that step for as long
    as the average is long. RAdam's first steps are the worst ones: they follow the bare gradient.

    Attributes:
        weights: the average of the parameters that train, by name; spread over the processes where the model's are.
        buffers: the model's, as they were at the last update.
        updates: how many there were.
    """

    def __init__(self, model: nn.Module, average: Average) -> None:
        self.weights = {name: nn.Parameter(p.detach().clone()) for name, p in trained(model).items()}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.updates = 0
        self._average = average

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's weights into the average; buffers, which do not train, are copied."""
        self.updates += 1
        mix = get_ema_multi_avg_fn(self._average(self.updates))
        mix(list(self.weights.values()), list(trained(model).values()), None)
        for ours, theirs in zip(self.buffers.values(), model.buffers(), strict=True):
            ours.copy_(theirs)

    def model(self, form: Model, model: nn.Module) -> Model:
        """A copy of `form` that is the average, in evaluation mode; every process has to ask.

        It has the average's own tensors and, for what does not train, the model's; what is spread comes whole, on the CPU.
        """
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        return copied(form, whole(frozen | self.weights | self.buffers)).eval()

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on: the average and its count of updates; every process has to ask."""
        return {"updates": self.updates, "weights": whole({name: p.detach() for name, p in self.weights.items()})}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state()` of an average of the same model."""
        self.updates = state["updates"]
        assert self.weights.keys() == state["weights"].keys()
        for name, p in self.weights.items():
            p.copy_(spread_as(state["weights"][name], p))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copied(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """A copy of `model` with `tensors` for the parameters and buffers that they are named after."""
    ours: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return copy.deepcopy(model, {id(ours[name]): tensor for name, tensor in tensors.items()})


def form_of(model: Model) -> Model:
    """A copy of `model` without numbers, which takes no memory."""
    ours: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return copied(model, {name: tensor.detach().to("meta") for name, tensor in ours.items()})
