"""Conditioning: what a sample is about, as one argument from the data to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

LENGTH = "#"  # ends the name of what says how long the rows of a condition are


@dataclass(frozen=True)
class Cond:
    """All that a network is told beside a noisy sample and its time. `Cond()` tells it nothing.

    Attributes:
        rows: tensors of B rows each, a row a sample, by the network's own argument names. An argument inside another has a
            dotted name: `added_cond_kwargs.time_ids`.
            Rows of different lengths are padded. Then `name#` (B,) holds their lengths, and the network takes a list of
            rows.
        shared: what is the same for all samples: position ids, shapes, None. A list has one entry, which the network gets
            once for each sample.
        lo: noise levels (B,) at which the wanted segments end. A `TwoTimes` is told of them; other networks are not.
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
        return Cond(rows, {name: _moved(value, device) for name, value in self.shared.items()}, lo)

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

    def arguments(self, dtype: torch.dtype, count: int) -> dict[str, Any]:
        """Keyword arguments for the network and `count` samples, nested where names are dotted; float rows in `dtype`."""
        flat: dict[str, object] = {
            name: value * count if isinstance(value, list) else value for name, value in self.shared.items()
        }
        for name, value in self.rows.items():
            lengths = self.rows.get(f"{name}{LENGTH}")
            rows = value.to(dtype) if value.is_floating_point() else value
            flat[name] = rows if lengths is None else [row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]
        nested: dict[str, Any] = {}
        for name, argument in flat.items():
            if name.endswith(LENGTH):
                continue
            *outer, last = name.split(".")
            place = nested
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = argument
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


@dataclass(frozen=True)
class Tokens:
    """What a network takes in rows that are no classes: embeddings of tokens, masks, sizes.

    Attributes:
        shape: of one row. How many tokens there are may differ; how wide one is may not.
    """

    shape: tuple[int, ...]

    def check(self, rows: Tensor) -> None:
        """Raises ValueError where `rows` (B, *) are no such rows."""
        have, want = tuple(rows.shape[1:]), self.shape
        if len(have) != len(want) or have[1:] != want[1:]:
            raise ValueError(f"a condition of this checkpoint has rows of {_times(want)}, not {_times(have)}")


def padded(conds: Sequence[Cond]) -> list[Cond]:
    """The same with rows of one length, that of the longest: zeros behind the others, which masks and lengths leave out.

    Raises:
        ValueError: rows differ in length, and no mask nor length says so.
    """
    longest: dict[str, int] = {}
    for cond in conds:
        for name, value in cond.rows.items():
            longest[name] = max(longest.get(name, 0), value.shape[1] if value.ndim > 1 else 0)
    return [
        replace(cond, rows={name: _longer(conds, name, value, longest[name]) for name, value in cond.rows.items()})
        for cond in conds
    ]


def _longer(conds: Sequence[Cond], name: str, value: Tensor, length: int) -> Tensor:
    if value.ndim < 2 or value.shape[1] == length:
        return value
    told = f"{name}{LENGTH}" in conds[0].rows or any("mask" in other for other in conds[0].rows)
    if not told:
        raise ValueError(
            f"{name} has {value.shape[1]} and {length} tokens for different prompts, and the network is told no mask"
        )
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], 1)


def _moved(value: object, device: torch.device | str) -> object:
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
