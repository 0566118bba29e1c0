"""Settling: how early a teacher's trajectory already knows its end."""

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
        distances: over the mean distance between final images of different seeds, (n, K): 1 is an unrelated image.
        within: what counts as settled.
        calls: of the network for a trajectory, counted at the network.
    """

    sigmas: Tensor
    distances: Array
    within: float
    calls: float

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


@dataclass(frozen=True)
class Walked:
    """A batch of trajectories.

    Attributes:
        distances: in feature space, of the estimate after each call from the final image, (B, K).
        ends: features of the final images, (B, D).
        rows: of the network that they took.
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
    """Walks the DDIM trajectories of `seeds` and measures, after each call, how far the estimate is from the end.

    All processes of a command share the batches. Those that are there when it is killed are not walked again.

    Args:
        denoiser: the teacher, on its device.
        seeds: one a trajectory.
        network: the feature extractor.
        steps: network calls of a trajectory, on the schedule's own grid.
        within: the distance, as a share of that between unrelated images, that counts as settled.
        batch: samples at once.
        precision: "no" (float32) or "bf16" in the network.
        cond: passed to the denoiser, one row a seed.
        folder: where batches are kept until the block ends well; nowhere if left out, which several processes cannot share.
        facts: what decides the trajectories beside their number and the batches.
    """
    if len(seeds) < 2 or steps < 2:
        raise ValueError(f"settling needs at least two seeds and two steps, got {len(seeds)} and {steps}")
    if not within > 0 or batch < 1:
        raise ValueError(f"`within` is a positive share and `batch` at least 1, got {within} and {batch}")
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
