"""What a model learns from, wherever it is kept: `Source`, and `Samples`, of which nothing but the sample is known."""

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
    """Examples to learn from, counted from 0. Memory need not grow with their number.

    Attributes:
        shape: of one sample.
        classes: names of class 0, 1, …, or None if they have none.
        label_range: the lowest and the highest class of all examples, or None if they have no classes.
        shared: what the conditions of all examples have in common; see `Cond`.
        null: one row of conditions that stands for none, or None where nobody has said it.
        fingerprint: changes with what the examples are, or None where only their number is known.
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
        """What example `k` is about, by the network's own argument names: a class is `class_labels`, a number ()."""

    def point(self, k: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, t) of a training row with example `k`, for which the level t and the noise eps were drawn."""


class Samples(Source, Protocol):
    """Samples as they are: pictures, latents."""

    def raw(self, rows: Sequence[int]) -> Tensor:
        """These samples as they are kept, uint8 pictures or float32 latents, (B, *shape)."""

    def x0(self, k: int) -> Tensor:
        """Sample `k` as float32, pictures in [−1, 1], latents as they are."""
        raw = self.raw([k])[0]
        return raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw

    def point(self, k: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, t) of a training row: sample `k` with the noise that was drawn for it."""
        return self.x0(k), eps, t

    def shuffled(self) -> Samples:
        """The same samples in an order of chance, always the same: data sets are often sorted by class."""
        return Shuffled(self)


@dataclass(frozen=True)
class Shuffled(Samples):
    """Other samples in an order of chance; nothing is moved."""

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
