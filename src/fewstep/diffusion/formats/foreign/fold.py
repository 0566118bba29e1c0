"""EDM's time in the time that stock pipelines tell: a change of the first layer of a UNet2DModel's time embedding."""

from __future__ import annotations

from typing import Any

import torch

from ...schedule import Karras

LEVELS = 4096  # noise levels that the change is fitted on; every other one checks it
SMALLEST = 1e-8  # singular values beside the largest that count: with fewer, no weight grows
MARGIN = 20.0  # noise levels in training lie so far outside of those that are sampled


@torch.no_grad()
def in_consistency_time(network: Any, schedule: Karras) -> float:
    """Makes a UNet2DModel that was told time_scale·ln σ one that is told 250·ln σ, at the noise levels of training.

    With e(t) the sinusoids of a time, e(250·ln σ)·A + a fits e(time_scale·ln σ) by least squares in float64; W·A and
    W·a + b take the place of the first layer's W and b.

    Returns:
        The largest difference of that layer's outputs at levels that were not fitted, over its largest output.
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
