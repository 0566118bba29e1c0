"""Conditions: classes, prompts and whatever else a network is given, as one argument from the data to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

LENGTH = "#"  # ends the name of the entry that holds the lengths of a condition's rows


@dataclass(frozen=True)
class Cond:
    """The arguments of a network besides the noisy sample and its time. `Cond()` has none.

    Attributes:
        rows: tensors with one row per sample, (B, *), by the network's argument names. An argument inside another has a
            dotted name: `added_cond_kwargs.time_ids`. Rows of different lengths are padded. Then `name#` (B,) holds their
            lengths, and the network gets a list of rows.
        shared: arguments that are the same for all samples: position ids, shapes, None. A list has one entry, which the
            network gets once per sample.
        lo: noise levels (B,) at which the segments end. Only a `TwoTimes` uses them.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Mapping[str, object] = field(default_factory=dict)
    lo: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.rows.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"every condition needs one row per sample, got {counts}")

    def part(self, rows: slice | Tensor) -> Cond:
        """The conditions of some rows."""
        lo = None if self.lo is None else self.lo[rows]
        return Cond({name: value[rows] for name, value in self.rows.items()}, self.shared, lo)

    def until(self, lo: Tensor) -> Cond:
        """The same conditions for segments that end at the noise levels `lo` (B,)."""
        return replace(self, lo=lo)

    def to(self, device: torch.device | str) -> Cond:
        """The same conditions on `device`."""
        lo = None if self.lo is None else self.lo.to(device, non_blocking=True)
        rows = {name: value.to(device, non_blocking=True) for name, value in self.rows.items()}
        return Cond(rows, {name: _moved(value, device) for name, value in self.shared.items()}, lo)

    def expand(self, count: int) -> Cond:
        """The conditions of one row repeated for `count` samples, without `lo`."""
        rows = {name: value.expand(count, *value.shape[1:]) for name, value in self.rows.items()}
        return Cond(rows, self.shared)

    @staticmethod
    def stack(*parts: Cond) -> Cond:
        """Several batches of conditions as one; `shared` and `lo` are those of the first."""
        first, *others = parts
        assert all(other.rows.keys() == first.rows.keys() for other in others)
        lo = None if first.lo is None else first.lo.repeat(len(parts))
        return Cond({name: torch.cat([part.rows[name] for part in parts]) for name in first.rows}, first.shared, lo)

    def arguments(self, dtype: torch.dtype, count: int) -> dict[str, Any]:
        """The keyword arguments of a call with `count` samples, nested where names are dotted; float rows in `dtype`."""
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
CLASS = "class_labels"  # the argument for classes in diffusers' networks


def labelled(labels: Tensor | None) -> Cond:
    """The condition of class labels (B,); `Cond()` for None."""
    return NOTHING if labels is None else Cond({CLASS: labels})


@dataclass(frozen=True)
class Classes:
    """Class labels as a condition: one integer per sample.

    Attributes:
        count: number of classes; data have the labels 0 to count − 1.
        null: the label that means "no class"; None if the architecture reserves none. DiTs reserve `count`.
    """

    count: int
    null: int | None = None

    @property
    def known(self) -> int:
        """Number of labels that the network has an embedding for."""
        return self.count + (self.null is not None)

    def check(self, labels: Tensor) -> None:
        """Raises ValueError if the network has no embedding for one of `labels` (B,)."""
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.known:
            wrong = low if low < 0 else high
            raise ValueError(f"this checkpoint knows the labels 0 to {self.known - 1}, not {wrong}")


@dataclass(frozen=True)
class Tokens:
    """Any other condition with one row per sample: token embeddings, masks, sizes.

    Attributes:
        shape: shape of one row. The first dimension, the number of tokens, may differ between rows; the others may not.
    """

    shape: tuple[int, ...]

    def check(self, rows: Tensor) -> None:
        """Raises ValueError if `rows` (B, *) have another shape."""
        have, want = tuple(rows.shape[1:]), self.shape
        if len(have) != len(want) or have[1:] != want[1:]:
            raise ValueError(f"a condition of this checkpoint has rows of {_times(want)}, not {_times(have)}")


def padded(conds: Sequence[Cond]) -> list[Cond]:
    """The same conditions, with zeros after the shorter rows, so that all rows have the length of the longest.

    Raises:
        ValueError: rows differ in length, and the network gets neither a mask nor the lengths.
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
            f"{name} has {value.shape[1]} and {length} tokens for different prompts, and the network takes no mask"
        )
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], 1)


def _moved(value: object, device: torch.device | str) -> object:
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
