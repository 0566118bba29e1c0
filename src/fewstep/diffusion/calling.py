"""How a network is called: with a batch of samples and times, or in the form that its pipeline uses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TIMES = ("timestep", "timesteps", "t")  # names of the time argument in diffusers' networks


@dataclass(frozen=True)
class Calling:
    """The form of a call: network(sample, **{time: …}, **conditions).

    Attributes:
        time: name of the argument for the time.
        factor, offset: the network gets offset + factor·time for the schedule's time.
        places: shape of the time of one sample; () is one number.
        shape: shape of one sample for the network; None is unchanged.
        listed: whether the network takes and returns a list of samples instead of a batch.
        sign: factor of the output; −1 if the pipeline negates it.
    """

    time: str
    factor: float = 1.0
    offset: float = 0.0
    places: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    listed: bool = False
    sign: float = 1.0

    def told(self, time: Tensor) -> Tensor:
        """The time argument for the schedule's `time` (B,), of shape (B, *places)."""
        told = self.offset + self.factor * time
        return told.view(-1, *[1] * len(self.places)).expand(-1, *self.places) if self.places else told

    def __call__(self, network: nn.Module, x: Tensor, told: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The output for samples x (B, *), of the same shape; a learned variance is dropped."""
        given: Any = x if self.shape is None else x.reshape(-1, *self.shape)
        output: Any = network(list(given) if self.listed else given, **{self.time: told}, **arguments)
        output = output if isinstance(output, Tensor) else output.sample
        return self.read(torch.stack(list(output)) if self.listed else output, x)

    def read(self, output: Tensor, x: Tensor) -> Tensor:
        """The mean part of `output` for samples x (B, *), with sign and shape as the pipeline uses them."""
        if output.numel() > x.numel():  # the other half is a learned variance
            output = output[:, : x.shape[1]]
        return self.sign * output.reshape(x.shape)


def time_name(kind: type[nn.Module]) -> str:
    """The name of the time argument of networks of this class."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    return next((name for name in TIMES if name in names[1:]), names[1] if len(names) > 1 else "")
