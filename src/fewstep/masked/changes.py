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


def count_changes(found: Sequence[Decoded], exact: Sequence[Decoded]) -> Changes:
    """What differs between the rows as they were found and as they are: what follows the last given text in them.

    Raises:
        ValueError: there are no rows, or not as many of both.
    """
    if not found or len(found) != len(exact):
        raise ValueError(f"a comparison needs the same rows twice, got {len(found)} and {len(exact)}")
    pairs = [(a.tokens[a.given :], b.tokens[b.given :]) for a, b in zip(found, exact, strict=True)]
    lengths = np.array([max(len(a), len(b)) for a, b in pairs])
    others = np.array([sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)) for a, b in pairs])

    def other(rows: NDArray[np.intp]) -> float:
        return float(others[rows].sum() / max(lengths[rows].sum(), 1))

    if len(pairs) > 1:
        value, low, high = jackknife(other, len(pairs), min(20, len(pairs)))
        tokens = Estimate(value, max(low, 0.0), min(high, 1.0))
    else:
        tokens = Estimate(other(np.arange(1)), 0.0, 1.0)
    answers = share(others > 0)
    return Changes(int((others > 0).sum()), len(pairs), answers, int(others.sum()), int(lengths.sum()), tokens)
