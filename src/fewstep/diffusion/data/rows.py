"""Training rows of sample and noise, as a function of seed and row number."""

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

Row = tuple[Tensor, Tensor, Tensor, dict[str, Tensor], Tensor]  # x0, eps, t, conditions by name, u


class Batch(NamedTuple):
    """A batch of rows: x0 and eps (B, *), noise levels t (B,), conditions, and uniform random u in [0, 1), (B,)."""

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
    """The rows of a training: an endless shuffled run over `data`, each row with its own noise.

    A row is a function of (seed, k) alone. So the order of the data, the noise and the mirroring are the same for any
    number of processes and loader workers, and a resumed run needs only the number of its next row.
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
        """`noise` takes standard normal z (B,) to noise levels (B,). `takes` names the conditions of a row, by default all.
        `dropped` is the share of rows that get the null condition, and this condition, one row."""
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
        """Batches of `batch` rows from row `start` to `stop`; process `rank` of `world` gets every `world`-th batch."""
        firsts = range(start + rank * batch, stop, world * batch)
        slices = (list(range(row, min(row + batch, stop))) for row in firsts)  # lazy: a run has millions of rows
        loader = DataLoader(self, batch_sampler=slices, num_workers=workers, pin_memory=torch.cuda.is_available())
        shared = self.data.shared
        for x0, eps, t, cond, u in loader:
            yield Batch(x0, eps, t, Cond(cond, shared), u)
