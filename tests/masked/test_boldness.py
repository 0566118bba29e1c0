"""Rules from safe to bold: at each step a bolder one decides all that a safer one does."""

from __future__ import annotations

from itertools import pairwise

import pytest
from masked.toy import Toy, masks

from fewstep.masked.boldness import Answer as Whole
from fewstep.masked.boldness import compared, graded
from fewstep.masked.decoding import walk
from fewstep.masked.rules import KLASS, Blockwise, Credit, EntropyBound, Factor, Hierarchical, Last, Threshold, TopK
from fewstep.masked.step import CommitRule

ROWS = [masks("01______"), masks("3__2__________"), masks("_" * 20)]


@pytest.mark.parametrize(
    "rule",
    [
        Threshold(),
        Factor(),
        EntropyBound(),
        KLASS(),
        Credit(),
        Hierarchical(),
        Blockwise(Factor(), 4),
        Last(Threshold(), (10, 3)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_a_bolder_rule_decides_no_less(rule: CommitRule) -> None:
    rules = [made for _, made in graded(rule)]
    sizes = [0] * len(rules)
    for walked in walk(Toy(scale=4.0), ROWS, TopK()):
        decided = [made(walked.step) for made in rules]
        for safer, bolder in pairwise(decided):
            assert not (safer & ~bolder).any()
        sizes = [size + int(now.sum()) for size, now in zip(sizes, decided, strict=True)]
    assert sizes[0] < sizes[-1]


def test_a_rule_without_a_boldness_is_refused() -> None:
    with pytest.raises(ValueError, match="a TopK has no confidence"):
        graded(TopK())


def test_answers_are_compared_by_what_they_mean() -> None:
    """By a grader the first two are the same; by their tokens none is."""
    found, whole = [Whole([1, 2], 1), Whole([3, 5], 2)], [Whole([1, 4], 3), Whole([2, 5], 3)]
    meant = compared(0.5, TopK(), found, whole, [[0, 1]] * 2, lambda one, other: bool(one[0] == other[0]))
    told = compared(0.5, TopK(), found, whole, [[0, 1]] * 2)
    assert (meant.changed, told.changed, told.steps) == (1, 2, 1.5)
