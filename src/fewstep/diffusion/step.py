"""One step of training done, and the state that a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.device import finite
from ..core.spread import spread_as, whole
from .average import Exponential, MovingAverage
from .denoiser import Denoiser

FORMAT = 2  # of `Step.state()`; 1 saw its data in another order


@dataclass(frozen=True)
class Step:
    """One optimizer step done.

    Attributes:
        step, images: optimizer steps and training images so far.
        loss: mean over the whole batch.
        gap: mean of (t − r)/t over this process's last micro-batch: 1 is diffusion, towards 0 is consistency.
        rate: the learning rate used.
        levels, losses: of each row that this process saw in it: its noise level, on the CPU, and its weighted loss, on the
            device; (rows,) both.
        student: the denoiser being trained.
        averaged, optimizer, form: for `emas` and `state`.

    Where the student is spread over processes, each of them has to ask for `emas`, `ema` and `state`, and each gets all.
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
        """The first moving average, the one to keep."""
        return self.averaged[0].model(self.form, self.student)

    def state(self) -> dict[str, Any]:
        """All that `tune(state=...)` needs to go on as if it had never stopped.

        No random state is in it: noise, order and dropout are functions of the seed and the step. Nor are weights that do
        not train, which the checkpoint has.

        Raises:
            FloatingPointError: a later step failed and has left weights that are not finite.
        """
        if not finite(self.student):
            raise FloatingPointError(f"step {self.step}: the weights after it are not finite, and nothing is to go on from")
        return {
            "format": FORMAT,
            "step": self.step,
            "student": whole(changing(self.student)),
            "emas": [averaged.state() for averaged in self.averaged],
            "optimizer": whole(self.optimizer.state_dict()),
        }


def averages_in(state: dict[str, Any], denoiser: Denoiser) -> list[Denoiser]:
    """The `Step.emas` of a saved `Step.state()`; `denoiser`, with which the run began, becomes its student.

    Raises:
        ValueError: see `take_up`.
    """
    take_up(denoiser, state)
    averaged = [MovingAverage(denoiser, Exponential()) for _ in state["emas"]]
    for each, kept in zip(averaged, state["emas"], strict=True):
        each.load(kept)
    return [each.model(denoiser, denoiser) for each in averaged]


def take_up(denoiser: Denoiser, state: dict[str, Any]) -> None:
    """Makes `denoiser` the student of a saved `Step.state()`.

    Raises:
        ValueError: the state has another format, or what trained then is not what trains now.
    """
    if state.get("format") != FORMAT:
        raise ValueError(
            f"the saved state has format {state.get('format', 0)}, and this fewstep goes on from format {FORMAT}; "
            "start the run anew"
        )
    ours, theirs = changing(denoiser), state["student"]
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        raise ValueError(
            f"the saved state holds {len(theirs)} tensors, which are not the {len(ours)} that change here; go on with the "
            "network that the run began with, frozen where it was"
        )
    denoiser.load_state_dict(theirs, strict=False)


def go_on(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Gives `optimizer` the state that a saved `Step.state()` has of it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: spread_as(value, parameters[number]) for name, value in of.items()}
        for number, of in kept["state"].items()
    }
    optimizer.load_state_dict(kept | {"state": state})


def changing(module: nn.Module) -> dict[str, Any]:
    """What training may change, by name: the weights that are not frozen, and the buffers."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}
