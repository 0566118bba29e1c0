"""What an approximation changes: how many answers, and how many of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.intervals import Estimate, jackknife, share
from .decoding import Decoded


class Changes(NamedTuple):
    """How many answers are others, of the same rows decoded in two ways."""

    answers: int  # that are not token for token the same
    n: int
    answers_share: Estimate  # with the exact interval
    ids: int  # tokens that are others; where one answer is longer, what it has more is
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
    """Of one answer, how many of its tokens are others, of how many."""

    ids: int
    of: int

    @classmethod
    def between(cls, found: Decoded, exact: Decoded) -> Changed:
        """What differs between a row as it was found and as it is: what follows the last given text in it."""
        a, b = found.tokens[found.given :], exact.tokens[exact.given :]
        return cls(sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)), max(len(a), len(b)))


def count_changes(found: Sequence[Decoded], exact: Sequence[Decoded]) -> Changes:
    """What differs between the rows as they were found and as they are.

    Raises:
        ValueError: there are no rows, or not as many of both.
    """
    if len(found) != len(exact):
        raise ValueError(f"a comparison needs the same rows twice, got {len(found)} and {len(exact)}")
    return changes_of([Changed.between(a, b) for a, b in zip(found, exact, strict=True)])


def changes_of(pairs: Sequence[Changed]) -> Changes:
    """The same of all answers, by what has changed in each.

    Raises:
        ValueError: there are none.
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
