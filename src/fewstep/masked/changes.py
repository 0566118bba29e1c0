"""Counts what an approximation changes: answers, and tokens in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.intervals import Estimate, jackknife, share
from .decoding import Decoded


class Changes(NamedTuple):
    """How many answers differ when the same rows are decoded in two ways."""

    answers: int  # answers that differ in at least one token
    n: int
    answers_share: Estimate  # with the exact interval
    ids: int  # tokens that differ; if one answer is longer, its further tokens count
    of: int
    ids_share: Estimate  # the interval is over answers, as tokens of one answer change together

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {
            "answers_share": self.answers_share._asdict(), "ids_share": self.ids_share._asdict()
        }  # fmt: skip

    def __str__(self) -> str:
        def told(part: Estimate) -> str:
            return f"{part.value:.1%} [{part.low:.1%}, {part.high:.1%}]"

        return (
            f"{self.answers} of {self.n} answers changed ({told(self.answers_share)}), "
            f"{self.ids} of {self.of} tokens ({told(self.ids_share)})"
        )


class Changed(NamedTuple):
    """The number of tokens of one answer that differ, and its number of tokens."""

    ids: int
    of: int

    @classmethod
    def between(cls, found: Decoded, exact: Decoded) -> Changed:
        """Compares a row with its exact decoding, after the last given text."""
        a, b = found.tokens[found.given :], exact.tokens[exact.given :]
        return cls(sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)), max(len(a), len(b)))


def count_changes(found: Sequence[Decoded], exact: Sequence[Decoded]) -> Changes:
    """Compares rows with their exact decodings.

    Raises:
        ValueError: there are no rows, or their numbers differ.
    """
    if len(found) != len(exact):
        raise ValueError(f"a comparison needs the same rows twice, got {len(found)} and {len(exact)}")
    return changes_of([Changed.between(a, b) for a, b in zip(found, exact, strict=True)])


def changes_of(pairs: Sequence[Changed]) -> Changes:
    """The changes of all answers, from those of each.

    Raises:
        ValueError: there are no answers.
    """
    if not pairs:
        raise ValueError("a comparison needs the same rows twice, got none")
    others, lengths = np.array(pairs).T

    def other(rows: NDArray[np.intp]) -> float:
        return float(others[rows].sum() / max(lengths[rows].sum(), 1))

    if len(pairs) > 1:
        value, low, high = jackknife(other, len(pairs), min(20, len(pairs)))
        tokens = Estimate(value, max(low, 0.0), min(high, 1.0))
    else:
        tokens = Estimate(other(np.arange(1)), 0.0, 1.0)
    answers = share(others > 0)
    return Changes(int((others > 0).sum()), len(pairs), answers, int(others.sum()), int(lengths.sum()), tokens)
