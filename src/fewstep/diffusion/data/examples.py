"""Training data from any kind of source: `Source`, and `Samples`, whose examples are plain samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..cond import Cond
from .order import Order


class Source(Protocol):
    """Training examples, counted from 0. They need not be in memory.

    Attributes:
        shape: shape of one sample.
        classes: names of class 0, 1, …, or None if classes have no names.
        label_range: the lowest and the highest class of all examples, or None without classes.
        shared: the conditions that all examples share; see `Cond`.
        null: the null condition, one row, or None if it is not known.
        fingerprint: identifies the content of the examples, or None if there is none.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def label_range(self) -> tuple[int, int] | None: ...

    @property
    def shared(self) -> Mapping[str, object]:
        return {}

    @property
    def null(self) -> Cond | None:
        return None

    @property
    def fingerprint(self) -> str | None:
        return None

    def __len__(self) -> int: ...

    def cond(self, k: int) -> Mapping[str, Tensor]:
        """The conditions of example `k` by the network's argument names; a class is `class_labels`, of shape ()."""

    def point(self, k: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The (x0, eps, t) of a training row with example `k`, given the drawn level t and noise eps."""


class Samples(Source, Protocol):
    """Plain samples: pictures or latents."""

    def raw(self, rows: Sequence[int]) -> Tensor:
        """Samples as they are stored, uint8 pictures or float32 latents, (B, *shape)."""

    def x0(self, k: int) -> Tensor:
        """Sample `k` as float32: pictures in [−1, 1], latents unchanged."""
        raw = self.raw([k])[0]
        return raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw

    def point(self, k: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The (x0, eps, t) of a training row: sample `k` with the drawn level and noise."""
        return self.x0(k), eps, t

    def shuffled(self) -> Samples:
        """The same samples in a fixed random order, because data sets are often sorted by class."""
        return Shuffled(self)


@dataclass(frozen=True)
class Shuffled(Samples):
    """Samples in a fixed random order, without copying them."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.samples.shape

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.samples.classes

    @property
    def label_range(self) -> tuple[int, int] | None:
        return self.samples.label_range

    @property
    def shared(self) -> Mapping[str, object]:
        return self.samples.shared

    @property
    def null(self) -> Cond | None:
        return self.samples.null

    @property
    def fingerprint(self) -> str | None:
        return self.samples.fingerprint

    @cached_property
    def _order(self) -> Order:
        return Order(len(self), 0)

    def cond(self, k: int) -> Mapping[str, Tensor]:
        return self.samples.cond(self._order(k))

    def raw(self, rows: Sequence[int]) -> Tensor:
        return self.samples.raw([self._order(k) for k in rows])
