"""Weight drift: how far each layer of a network was moved by a change to its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..lora import fused
from ..two_times import TwoTimes


class Drift(NamedTuple):
    """A layer's name, and the norm of the change of its weights over their norm: 1 is as far as they are long."""

    layer: str
    change: float


@torch.no_grad()
def drift(before: Denoiser, after: Denoiser) -> list[Drift]:
    """Of each layer in the order in which the data meet them, from the input to the output.

    A LoRA counts as what it makes of the weights that it changes. The second time of a student of any number of calls has
    no counterpart and is left out.

    Raises:
        ValueError: the networks are not of the same form.
    """
    ours, theirs = _weights(before), _weights(after)
    if {name: w.shape for name, w in ours.items()} != {name: w.shape for name, w in theirs.items()}:
        raise ValueError("the two networks are not of the same form, so no layer of one is a layer of the other")
    found = []
    for layer in _met(before):
        names = [name for name in ours if name.rpartition(".")[0] == layer]
        if names:
            moved = sum(float((theirs[name].cpu().double() - ours[name].cpu().double()).square().sum()) for name in names)
            length = sum(float(ours[name].double().square().sum()) for name in names)
            found.append(Drift(layer, (moved / max(length, 1e-300)) ** 0.5))
    return found


def _weights(denoiser: Denoiser) -> Mapping[str, Tensor]:
    return dict(fused(denoiser).network.named_parameters())


def _met(denoiser: Denoiser) -> list[str]:
    """The names of the layers of a network in the order of their first call; those that are not called come last."""
    names, met = dict(denoiser.network.named_modules()), dict[str, None]()
    with ExitStack() as stack:
        for name, module in names.items():
            if any(True for _ in module.parameters(recurse=False)):
                hook = module.register_forward_pre_hook(lambda _, __, name=name: met.setdefault(name))
                stack.callback(hook.remove)
        x = torch.zeros(1, *denoiser.space.shape, device=denoiser.device)
        level = x.new_full((1,), denoiser.schedule.sigma_max)
        cond = denoiser.blank.to(x.device)
        denoiser(x, level, cond.until(torch.zeros_like(level)) if isinstance(denoiser, TwoTimes) else cond)
    return [*met, *(name for name in names if name not in met)]
