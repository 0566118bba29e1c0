"""Converts EDM's time to that of stock pipelines by a change of the first layer of the time embedding."""

from __future__ import annotations

from typing import Any

import torch

from ...schedule import Karras

LEVELS = 4096  # noise levels; the change is fitted on one half and checked on the other
SMALLEST = 1e-8  # singular values relative to the largest; dropping smaller ones keeps the weights small
MARGIN = 20.0  # factor by which noise levels in training exceed the range of sampling


@torch.no_grad()
def in_consistency_time(network: Any, schedule: Karras) -> float:
    """Changes a UNet2DModel with the time time_scale·ln σ into one with the time 250·ln σ, at the levels of training.

    With e(t) the sinusoids of a time, e(250·ln σ)·A + a is fitted to e(time_scale·ln σ) by least squares in float64. W·A
    and W·a + b replace W and b of the first layer.

    Returns:
        The largest difference of that layer's outputs at levels that were not fitted, relative to its largest output.
    """
    first, low, high = network.time_embedding.linear_1, schedule.sigma_min / MARGIN, schedule.sigma_max * MARGIN
    levels = torch.logspace(0, 1, LEVELS, base=high / low, dtype=torch.float64) * low
    old = network.time_proj(schedule.time_scale * levels.log()).double()
    new = torch.nn.functional.pad(network.time_proj(250 * levels.log()).double(), (0, 1), value=1.0)
    change = torch.linalg.lstsq(new[::2], old[::2], rcond=SMALLEST, driver="gelsd").solution
    weight, bias = first.weight.double(), first.bias.double()
    wanted = old @ weight.T + bias
    first.weight.copy_((change[:-1] @ weight.T).T)
    first.bias.copy_(change[-1] @ weight.T + bias)
    made = new[:, :-1] @ first.weight.double().T + first.bias.double()
    return float((made - wanted)[1::2].abs().max() / wanted.abs().max())
