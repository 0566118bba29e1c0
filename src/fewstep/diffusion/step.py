"""A finished training step, and the saved state from which a run is resumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.device import finite
from ..core.spread import spread_as, whole
from .average import Exponential, MovingAverage
from .denoiser import Denoiser

FORMAT = 2  # of `Step.state()`; format 1 had another order of the data


@dataclass(frozen=True)
class Step:
    """A finished optimizer step.

    Attributes:
        step, images: optimizer steps and training images so far.
        loss: mean over the whole batch.
        gap: mean of (t − r)/t over this process's last micro-batch, from 1 (diffusion) towards 0 (consistency).
        rate: the learning rate of the step.
        levels, losses: noise level and weighted loss of each row of this process, (rows,) each. The levels are on the CPU,
            the losses on the device.
        student: the denoiser being trained.
        averaged, optimizer, form: used by `emas` and `state`.

    If the student is sharded over processes, every process must call `emas`, `ema` and `state`; each gets whole tensors.
    """

    step: int
    images: int
    loss: float
    gap: float
    rate: float
    levels: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)
    student: Denoiser
    averaged: tuple[MovingAverage, ...]
    optimizer: torch.optim.Optimizer
    form: Denoiser

    @property
    def emas(self) -> list[Denoiser]:
        """The moving averages of the student, in evaluation mode, in the order of `average`."""
        return [averaged.model(self.form, self.student) for averaged in self.averaged]

    @property
    def ema(self) -> Denoiser:
        """The first moving average."""
        return self.averaged[0].model(self.form, self.student)

    def state(self) -> dict[str, Any]:
        """The state with which `tune(state=...)` continues as if it had not stopped.

        It holds no random state, because noise, order and dropout are functions of the seed and the step. It holds no
        frozen weights, because the checkpoint has them.

        Raises:
            FloatingPointError: the weights are not finite, because a later step failed.
        """
        if not finite(self.student):
            raise FloatingPointError(f"step {self.step}: the weights after it are not finite, so there is no state to save")
        return {
            "format": FORMAT,
            "step": self.step,
            "student": whole(changing(self.student)),
            "emas": [averaged.state() for averaged in self.averaged],
            "optimizer": whole(self.optimizer.state_dict()),
        }


def averages_in(state: dict[str, Any], denoiser: Denoiser) -> list[Denoiser]:
    """The `Step.emas` of a saved `Step.state()`. `denoiser`, with which the run began, becomes the state's student.

    Raises:
        ValueError: see `take_up`.
    """
    take_up(denoiser, state)
    averaged = [MovingAverage(denoiser, Exponential()) for _ in state["emas"]]
    for each, kept in zip(averaged, state["emas"], strict=True):
        each.load(kept)
    return [each.model(denoiser, denoiser) for each in averaged]


def take_up(denoiser: Denoiser, state: dict[str, Any]) -> None:
    """Loads the student of a saved `Step.state()` into `denoiser`.

    Raises:
        ValueError: the state has another format, or its tensors are not those that train in `denoiser`.
    """
    if state.get("format") != FORMAT:
        raise ValueError(
            f"the saved state has format {state.get('format', 0)}, and this fewstep reads format {FORMAT}; start a new run"
        )
    ours, theirs = changing(denoiser), state["student"]
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        raise ValueError(
            f"the saved state holds {len(theirs)} tensors that do not match the {len(ours)} that train here; resume with "
            "the network that the run began with, with the same parts frozen"
        )
    denoiser.load_state_dict(theirs, strict=False)


def go_on(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Loads `kept`, the optimizer's part of a saved `Step.state()`, into `optimizer`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: spread_as(value, parameters[number]) for name, value in of.items()}
        for number, of in kept["state"].items()
    }
    optimizer.load_state_dict(kept | {"state": state})


def changing(module: nn.Module) -> dict[str, Any]:
    """The tensors that training may change, by name: the weights that are not frozen, and the buffers."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}
