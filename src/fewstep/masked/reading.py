"""Readings: a predictor's memory of a batch during decoding. A wrapped reading is a reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from typing import Self

    from .predictor import Canvas


class Reading(Protocol):
    """The memory of the rows of one canvas; the decoder says which rows leave, which enter and what changed.

    A row keeps its columns. A canvas gets narrower when a long row leaves and wider when one enters: columns beyond its
    width are padding in every row and can be forgotten.
    """

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor, /) -> Tensor:
        """Logits (N, V) of the N wanted positions, as from a `MaskPredictor`.

        `changed` is (B, L) bool: the positions whose token differs from that at the last read. For a row that was not read
        yet it holds all positions that are no padding.
        """
        ...

    def keep(self, rows: Sequence[int], /) -> Reading:
        """The memory of these rows, in this order."""
        ...

    def join(self, other: Self, /) -> Reading:
        """The memory of these rows, followed by the rows of another reading by the same predictor."""
        ...


@dataclass(frozen=True)
class Plain:
    """Remembers nothing: every read calls the network on the whole canvas, which is exact.

    Args:
        predict: (canvas, wanted) -> logits.
    """

    predict: Callable[[Canvas, Tensor], Tensor]

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> Tensor:
        return self.predict(canvas, wanted)

    def keep(self, rows: Sequence[int]) -> Plain:
        return self

    def join(self, other: Plain) -> Plain:
        return self


@dataclass(frozen=True)
class Combined:
    """Combines the logits of several readings of the same rows.

    Args:
        combine: logits of the readings, (N, V) each -> (N, V).
        parts: the readings.
    """

    combine: Callable[..., Tensor]
    parts: tuple[Reading, ...]

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> Tensor:
        return self.combine(*(part.read(canvas, wanted, changed) for part in self.parts))

    def keep(self, rows: Sequence[int]) -> Combined:
        return replace(self, parts=tuple(part.keep(rows) for part in self.parts))

    def join(self, other: Combined) -> Combined:
        return replace(self, parts=tuple(a.join(b) for a, b in zip(self.parts, other.parts, strict=True)))
