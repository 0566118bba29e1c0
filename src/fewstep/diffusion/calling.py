"""How a network is called: by a batch of samples and times, or in whatever form its pipeline calls it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TIMES = ("timestep", "timesteps", "t")  # what diffusers' networks call their time


@dataclass(frozen=True)
class Calling:
    """The form of a call: network(sample, **{time: …}, **conditions).

    Attributes:
        time: name of its argument for the time.
        factor, offset: the network is told offset + factor·time, where time is what the schedule says.
        places: shape of one sample's time; () is one number.
        shape: of one sample as the network takes it; None is as it is.
        listed: whether it takes and gives a list of samples instead of a batch.
        sign: of its output; −1 where the pipeline turns it around.
    """

    time: str
    factor: float = 1.0
    offset: float = 0.0
    places: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    listed: bool = False
    sign: float = 1.0

    def told(self, time: Tensor) -> Tensor:
        """What the network is told for the schedule's `time` (B,)."""
        told = self.offset + self.factor * time
        return told.view(-1, *[1] * len(self.places)).expand(-1, *self.places) if self.places else told

    def __call__(self, network: nn.Module, x: Tensor, told: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The output for samples x (B, *), in their shape; a learned variance is dropped."""
        given: Any = x if self.shape is None else x.reshape(-1, *self.shape)
        output: Any = network(list(given) if self.listed else given, **{self.time: told}, **arguments)
        output = output if isinstance(output, Tensor) else output.sample
        return self.read(torch.stack(list(output)) if self.listed else output, x)

    def read(self, output: Tensor, x: Tensor) -> Tensor:
        """What the pipeline makes of `output` for samples x (B, *): the half that is the mean, in their shape."""
        if output.numel() > x.numel():  # the other half is a learned variance
            output = output[:, : x.shape[1]]
        return self.sign * output.reshape(x.shape)


def time_name(kind: type[nn.Module]) -> str:
    """The name of the argument that is the time, for networks of this kind."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    return next((name for name in TIMES if name in names[1:]), names[1] if len(names) > 1 else "")
