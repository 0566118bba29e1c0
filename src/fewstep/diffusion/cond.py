"""Conditioning: what a sample is about, as one argument from the data to the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """All that a network is told beside a noisy sample and its time. `Cond()` tells it nothing.

    Attributes:
        rows: tensors of B rows each, a row a sample, by the network's own argument names. An argument inside another has a
            dotted name: `added_cond_kwargs.time_ids`.
        shared: what has no rows and is the same for all samples: position ids, shapes, None.
        lo: noise levels (B,) where the segment ends that is asked for, of which a `TwoTimes` is told; others do not listen.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, object] = field(default_factory=dict)
    lo: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.rows.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"every condition needs a row for each sample, got {counts}")

    def part(self, rows: slice | Tensor) -> Cond:
        """The conditions of these rows."""
        lo = None if self.lo is None else self.lo[rows]
        return Cond({name: value[rows] for name, value in self.rows.items()}, self.shared, lo)

    def until(self, lo: Tensor) -> Cond:
        """The same, for segments that end at the noise levels `lo` (B,)."""
        return replace(self, lo=lo)

    def to(self, device: torch.device | str) -> Cond:
        """The same on `device`."""
        lo = None if self.lo is None else self.lo.to(device, non_blocking=True)
        rows = {name: value.to(device, non_blocking=True) for name, value in self.rows.items()}
        shared = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.shared.items()}
        return Cond(rows, shared, lo)

    def expand(self, count: int) -> Cond:
        """One row's conditions for `count` samples."""
        rows = {name: value.expand(count, *value.shape[1:]) for name, value in self.rows.items()}
        return Cond(rows, self.shared)

    @staticmethod
    def stack(*parts: Cond) -> Cond:
        """One batch of several, as guidance asks with and without a condition in one call; `lo` is the first's."""
        first, *others = parts
        assert all(other.rows.keys() == first.rows.keys() for other in others)
        lo = None if first.lo is None else first.lo.repeat(len(parts))
        return Cond({name: torch.cat([part.rows[name] for part in parts]) for name in first.rows}, first.shared, lo)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments for the network, nested where names are dotted; floating-point rows in `dtype`."""
        flat: dict[str, object] = dict(self.shared)
        flat |= {name: value.to(dtype) if value.is_floating_point() else value for name, value in self.rows.items()}
        nested: dict[str, Any] = {}
        for name, value in flat.items():
            *outer, last = name.split(".")
            place = nested
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = value
        return nested


NOTHING = Cond()
CLASS = "class_labels"  # what diffusers' networks call the class


def labelled(labels: Tensor | None) -> Cond:
    """The condition of class labels (B,); nothing without labels."""
    return NOTHING if labels is None else Cond({CLASS: labels})


@dataclass(frozen=True)
class Classes:
    """What a class-conditional network takes: one integer label a sample.

    Attributes:
        count: classes that data have, 0 to count − 1.
        null: the label that means "no class" where the architecture reserves one, as DiTs do behind their classes.
    """

    count: int
    null: int | None = None

    @property
    def known(self) -> int:
        """Labels run from 0 to one less."""
        return self.count + (self.null is not None)

    def check(self, labels: Tensor) -> None:
        """Raises ValueError where the network has no embedding for one of `labels` (B,)."""
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.known:
            wrong = low if low < 0 else high
            raise ValueError(f"this checkpoint knows the labels 0 to {self.known - 1}, not {wrong}")
