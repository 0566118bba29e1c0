"""Settling: how early a diffusion model's trajectories predict their final images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.files import atomic_file
from ...core.nfe import count_nfe
from ...core.parts import Form, in_parts, in_ranges
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
        distances: distances relative to the mean distance between final images of different seeds, (n, K).
        within: largest distance that counts as settled.
        calls: network calls per trajectory, as counted at the network.
    """

    sigmas: Tensor
    distances: Array
    within: float
    calls: float

    @property
    def shares(self) -> Array:
        """Share of the network calls made until each estimate, (K,)."""
        steps = len(self.sigmas)
        return np.arange(1, steps + 1) / steps

    def curve(self, quantile: float) -> Array:
        """A quantile of the distances over seeds, at each call, (K,)."""
        return np.quantile(self.distances, quantile, axis=0)

    def settled_at(self) -> Array:
        """Number of calls after which each seed's distance stays within `within`, (n,) from 1 to K."""
        outside = self.distances > self.within
        last_outside = np.where(outside.any(1), outside.shape[1] - 1 - outside[:, ::-1].argmax(1), -1)
        return last_outside + 2

    def sentence(self) -> str:
        """The result in one sentence."""
        steps, calls = len(self.sigmas), self.settled_at()
        half, most = (int(np.quantile(calls, q, method="higher")) for q in (0.5, 0.9))
        return (
            f"Of {steps} network calls, half of the {len(calls)} seeds have settled for good (within {self.within:.0%} of "
            f"the distance to an unrelated image) after {half} (σ = {self.sigmas[half - 1]:.2g}), nine in ten after {most} "
            f"(σ = {self.sigmas[most - 1]:.2g})."
        )


@dataclass(frozen=True)
class Walked:
    """A batch of trajectories.

    Attributes:
        distances: distance of the estimate after each call to the final image in feature space, (B, K).
        ends: features of the final images, (B, D).
        rows: network rows of the batch.
    """

    distances: Array
    ends: Array
    rows: int


@contextmanager
def settled(
    denoiser: Denoiser,
    seeds: Sequence[int],
    network: nn.Module,
    *,
    steps: int = 50,
    within: float = 0.1,
    batch: int = 250,
    precision: str = "no",
    cond: Cond = NOTHING,
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Settling]:
    """Walks the DDIM trajectories of `seeds` and measures the distance of each estimate of x0 to the final image.

    All processes share the batches. Finished batches are kept, so that an interrupted command does not repeat them.

    Args:
        denoiser: the diffusion model, on its device.
        seeds: one per trajectory, at least 2.
        network: the feature extractor.
        steps: network calls per trajectory, on the schedule's own grid; at least 2.
        within: distance that counts as settled, as a share of that between unrelated images; above 0.
        batch: number of trajectories at once.
        precision: "no" (float32) or "bf16" in the network.
        cond: conditions, one row per seed.
        folder: folder for finished batches, until the context ends without an error; None keeps none and is for a single
            process.
        facts: everything that the trajectories depend on besides their number and the batches.

    Raises:
        ValueError: a number is out of its range, the conditions do not fit, or all final images are the same.
    """
    if len(seeds) < 2 or steps < 2:
        raise ValueError(f"settling needs at least two seeds and two steps, got {len(seeds)} and {steps}")
    if not within > 0 or batch < 1:
        raise ValueError(f"`within` must be above 0 and `batch` at least 1, got {within} and {batch}")
    denoiser.eval().check(cond)
    grid, ranges = DDIM(steps).levels(denoiser), in_ranges(len(seeds), batch)

    def make(k: int) -> Walked:
        rows = slice(ranges[k].start, ranges[k].stop)
        with progress("settling", len(ranges[k]) * steps) as done, count_nfe(denoiser.network, done) as nfe:
            x = prior(denoiser, generators(seeds[rows]))
            path = ddim_path(denoiser, x, grid.to(x), cond.part(rows).to(x.device))
            with torch.autocast(x.device.type, torch.bfloat16, precision == "bf16"):
                seen = [extract(network, denoiser.space.decode(x0.cpu())) for _, x0 in path]
        end = seen[-1]  # the last step goes to 0, so its estimate is the final image
        return Walked(np.stack([np.linalg.norm(features - end, axis=1) for features in seen], 1), end, nfe.rows)

    decided = {**(facts or {}), "n": len(seeds), "batch": batch, "precision": precision}
    sizes = [len(rows) * steps for rows in ranges]
    with in_parts(folder, decided, sizes, make, KEPT, title="settling") as parts:
        walked = list(parts)
        ends = np.concatenate([part.ends for part in walked])
        unrelated = float(np.linalg.norm(ends - np.roll(ends, 1, axis=0), axis=1).mean())
        if not unrelated > 0:
            raise ValueError("all trajectories end in the same image, so there is no distance to measure settling by")
        calls = sum(part.rows for part in walked) / len(seeds)
        yield Settling(grid, np.concatenate([part.distances for part in walked]) / unrelated, within, calls)


def _write(file: Path, part: Walked) -> None:
    with atomic_file(file) as content:
        np.savez(content, distances=part.distances, ends=part.ends, rows=part.rows)


def _read(file: Path) -> Walked:
    with np.load(file) as held:
        return Walked(held["distances"], held["ends"], int(held["rows"]))


KEPT: Form[Walked] = Form(".npz", _write, _read)
