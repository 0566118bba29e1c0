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
    """The drift of each layer, in the order from input to output.

    A LoRA is fused first. The second time of a student of any number of calls has no counterpart and is left out.

    Raises:
        ValueError: the networks have different architectures.
    """
    return moved(_weights(before), _weights(after), met(before.network, partial(_ask, before)))


def _weights(denoiser: Denoiser) -> Mapping[str, Tensor]:
    return dict(fused(denoiser).network.named_parameters())


def _ask(denoiser: Denoiser) -> None:
    x = torch.zeros(1, *denoiser.space.shape, device=denoiser.device)
    level = x.new_full((1,), denoiser.schedule.sigma_max)
    cond = denoiser.blank.to(x.device)
    denoiser(x, level, cond.until(torch.zeros_like(level)) if isinstance(denoiser, TwoTimes) else cond)
