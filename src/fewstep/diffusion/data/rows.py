"""Rows of (image, noise) that depend on the seed and the row number alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...core.seeds import derive, generators, normal
from ..cond import NOTHING, Cond
from .examples import Source
from .order import Order

Row = tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor]  # x0, eps, t, conditions by their names, chance u


class Batch(NamedTuple):
    """What one training step sees: x0 and eps (B, C, H, W), noise levels t, conditions, chance u in [0, 1), (B,) each."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    cond: Cond
    u: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        x0, eps, t, u = (part.to(device, non_blocking=True) for part in (self.x0, self.eps, self.t, self.u))
        return Batch(x0, eps, t, self.cond.to(device), u)


class Rows(Dataset[Row]):
    """Row k of training: sample k of an endless shuffled run over `data`, with its own noise.

    A row is a function of (seed, k) alone. So the order of the data, the noise and the mirroring are the same for any
    number of processes and loader workers. A resumed run needs nothing but the number of its next row.
    """

    def __init__(
        self,
        data: Source,
        noise: Callable[[Tensor], Tensor],
        *,
        seed: int,
        mirror: bool = False,
        takes: Collection[str] | None = None,
        dropped: tuple[float, Cond] = (0.0, NOTHING),
    ) -> None:
        """`noise` makes noise levels (B,) of standard normal z (B,); `takes` are the conditions that are wanted, all by
        default; `dropped` is the share of rows that get the conditions that stand for none, and those, one row."""
        self.data = data
        self.noise = noise
        self.seed = seed
        self.mirror = mirror
        self.takes = takes
        self.dropped = dropped
        self.order = Order(len(data), seed)

    def __getitem__(self, row: int) -> Row:
        index = self.order(row)
        rngs = generators([derive(self.seed, 1, row)])
        t = self.noise(normal(rngs, ()))[0]
        x0, eps, t = self.data.point(index, t, normal(rngs, self.data.shape)[0])
        if self.mirror and torch.rand((), generator=rngs[0]) < 0.5:
            x0 = x0.flip(-1)
        cond = self.data.cond(index)
        share, null = self.dropped
        if share and torch.rand((), generator=rngs[0]) < share:
            cond = {name: value[0] for name, value in null.rows.items()}
        wanted = {name: value for name, value in cond.items() if self.takes is None or name in self.takes}
        return x0, eps, t, wanted, torch.rand((), generator=rngs[0])

    def batches(
        self, start: int, stop: int, batch: int, *, rank: int = 0, world: int = 1, workers: int = 0
    ) -> Iterator[Batch]:
        """Batches of `batch` rows from row `start` to `stop`, of which this process gets every `world`-th batch."""
        firsts = range(start + rank * batch, stop, world * batch)
        slices = (list(range(row, min(row + batch, stop))) for row in firsts)  # lazy: a run has millions of rows
        loader = DataLoader(self, batch_sampler=slices, num_workers=workers, pin_memory=torch.cuda.is_available())
        shared = self.data.shared
        for x0, eps, t, cond, u in loader:
            yield Batch(x0, eps, t, Cond(cond, shared), u)
