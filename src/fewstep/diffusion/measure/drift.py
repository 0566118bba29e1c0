"""The drift of a denoiser's weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ...core.drift import Drift, met, moved
from ..denoiser import Denoiser
from ..lora import fused
from ..two_times import TwoTimes


def drift(before: Denoiser, after: Denoiser) -> list[Drift]:
    """Of each layer in the order in which the data meet them, from the input to the output.

    A LoRA counts as what it makes of the weights that it changes. The second time of a student of any number of calls has
    no counterpart and is left out.

    Raises:
        ValueError: the networks are not of the same form.
    """
    return moved(_weights(before), _weights(after), met(before.network, partial(_ask, before)))


def _weights(denoiser: Denoiser) -> Mapping[str, Tensor]:
    return dict(fused(denoiser).network.named_parameters())


def _ask(denoiser: Denoiser) -> None:
    x = torch.zeros(1, *denoiser.space.shape, device=denoiser.device)
    level = x.new_full((1,), denoiser.schedule.sigma_max)
    cond = denoiser.blank.to(x.device)
    denoiser(x, level, cond.until(torch.zeros_like(level)) if isinstance(denoiser, TwoTimes) else cond)
