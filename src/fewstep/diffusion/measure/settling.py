"""Settling: how early a teacher's trajectory already knows its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...core.nfe import count_nfe
from ...core.progress import progress
from ...core.seeds import generators
from ..cond import NOTHING, Cond
from ..denoiser import Denoiser
from ..samplers import ddim_path
from ..walk import DDIM, prior
from .features import extract
from .scores import Array

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Settling:
    """Distances of the denoised estimate to the final image in feature space, along the trajectories of n seeds.

    Attributes:
        sigmas: noise level of each call, (K,).
        distances: over the mean distance between final images of different seeds, (n, K): 1 is an unrelated image.
        within: what counts as settled.
    """

    sigmas: Tensor
    distances: Array
    within: float

    @property
    def shares(self) -> Array:
        """Share of the network calls spent when each estimate is known, (K,)."""
        steps = len(self.sigmas)
        return np.arange(1, steps + 1) / steps

    def curve(self, quantile: float) -> Array:
        """The quantile over seeds at each call, (K,)."""
        return np.quantile(self.distances, quantile, axis=0)

    def settled_at(self) -> Array:
        """Calls until each seed's estimate is within the tolerance for good, (n,) of 1 … K."""
        outside = self.distances > self.within
        last_outside = np.where(outside.any(1), outside.shape[1] - 1 - outside[:, ::-1].argmax(1), -1)
        return last_outside + 2

    def sentence(self) -> str:
        """What it means for the number of steps, in one sentence."""
        steps, calls = len(self.sigmas), self.settled_at()
        half, most = (int(np.quantile(calls, q, method="higher")) for q in (0.5, 0.9))
        return (
            f"Of {steps} network calls, half of the {len(calls)} seeds have settled for good (within {self.within:.0%} of "
            f"the distance to an unrelated image) after {half} (σ = {self.sigmas[half - 1]:.2g}), nine in ten after {most} "
            f"(σ = {self.sigmas[most - 1]:.2g})."
        )


def settle(
    denoiser: Denoiser,
    seeds: Sequence[int],
    network: nn.Module,
    *,
    steps: int = 50,
    within: float = 0.1,
    batch: int = 250,
    precision: str = "no",
    cond: Cond = NOTHING,
) -> Settling:
    """Walks the DDIM trajectories of `seeds` and measures, after each call, how far the estimate is from the end.

    Args:
        denoiser: the teacher, on its device.
        seeds: one a trajectory.
        network: the feature extractor.
        steps: network calls of a trajectory, on the schedule's own grid.
        within: the distance, as a share of that between unrelated images, that counts as settled.
        batch: samples at once.
        precision: "no" (float32) or "bf16" in the network.
        cond: passed to the denoiser, one row a seed.
    """
    if len(seeds) < 2 or steps < 2:
        raise ValueError(f"settling needs at least two seeds and two steps, got {len(seeds)} and {steps}")
    if not within > 0 or batch < 1:
        raise ValueError(f"`within` is a positive share and `batch` at least 1, got {within} and {batch}")
    denoiser.check(cond)
    grid, parts, ends = DDIM(steps).levels(denoiser), [], []
    with progress("settling", len(seeds) * steps) as done, count_nfe(denoiser.network, done):
        for start in range(0, len(seeds), batch):
            x = prior(denoiser.eval(), generators(seeds[start : start + batch]))
            rows = cond.part(slice(start, start + batch)).to(x.device)
            path = ddim_path(denoiser, x, grid.to(x), rows)
            with torch.autocast(x.device.type, torch.bfloat16, precision == "bf16"):
                seen = [extract(network, denoiser.space.decode(x0.cpu())) for _, x0 in path]
            ends.append(seen[-1])  # the last step goes to 0, so its estimate is the final image
            parts.append(np.stack([np.linalg.norm(features - seen[-1], axis=1) for features in seen], 1))
    final = np.concatenate(ends)
    unrelated = float(np.linalg.norm(final - np.roll(final, 1, axis=0), axis=1).mean())
    if not unrelated > 0:
        raise ValueError("all trajectories end in the same image, so there is no distance to measure settling by")
    return Settling(grid, np.concatenate(parts) / unrelated, within)
