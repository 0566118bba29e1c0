"""Calibrates how bold a commit rule may be: from safe to bold until it changes too many answers, with a guarantee."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.intervals import upper_bound
from ..core.progress import track
from .calibration import Calibration, Decoding, check_calibration, fixed_sequence
from .learned import Learned
from .predictor import MaskPredictor
from .rules import KLASS, LLADA, Blockwise, Credit, EntropyBound, Factor, Hierarchical, Last, Threshold
from .schedule import Region
from .settling import Same
from .step import CommitRule

# the values that are tried, from safe to bold: a probability, a factor, nats
CONFIDENCES = (0.999, 0.997, 0.995, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
PARALLEL = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


class Answer(NamedTuple):
    """The result of a row."""

    ids: list[int]  # the whole row, prompt included
    steps: int


class Tried(NamedTuple):
    """A rule, and its results on the calibration rows."""

    value: float  # its confidence, factor or bound
    rule: CommitRule
    changed: int
    steps: float  # mean


def graded(rule: CommitRule) -> list[tuple[float, CommitRule]]:
    """The rule at each value that is tried, from safe to bold, as (confidence, factor or bound; rule).

    Raises:
        ValueError: the rule has no confidence, factor or bound.
    """
    if isinstance(rule, Blockwise | Last):
        return [(value, replace(rule, rule=inner)) for value, inner in graded(rule.rule)]
    if isinstance(rule, Factor):
        return [(value, replace(rule, factor=value)) for value in PARALLEL]
    if isinstance(rule, EntropyBound):
        return [(value, replace(rule, bound=value)) for value in BOUNDS]
    if isinstance(rule, Threshold | Credit | KLASS | Hierarchical | Learned):
        return [(value, replace(rule, confidence=value)) for value in CONFIDENCES]
    raise ValueError(
        f"a {type(rule).__name__} has no confidence to choose; calibrate threshold, factor, entropy-bound, klass, credit, "
        "hierarchical or learned"
    )


def calibrate_rule(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rules: Sequence[tuple[float, CommitRule]],
    decoding: Decoding = Decoding(),
    *,
    full: CommitRule = LLADA,
    epsilon: float = 0.05,
    delta: float = 0.05,
    region: Region | None = None,
) -> Calibration:
    """Learn-then-Test over the boldness of a rule itself: rules are tried from safe to bold until one fails.

    Every row is decoded in full once, and once by each rule that is tried. A rule passes like a threshold in `calibrate`.

    Args:
        predictor, rows, decoding, epsilon, delta: as for `calibrate`.
        rules: from safe to bold, each with its value; see `graded`. They must be chosen without looking at `rows`.
        full: full decoding, whose answers are to be kept.
        region: the place of the answer; None is the whole generation.

    Raises:
        ValueError: too few rows for any guarantee, or no rules.

    Reference: Angelopoulos et al. 2021, Learn then Test.
    """
    check_calibration(len(rows), epsilon, delta)
    whole = answers(decoding.exact or predictor, rows, full, decoding)
    where = places(rows, predictor.mask_id, region)
    tried = (
        compared(value, rule, answers(predictor, rows, rule, decoding), whole, where, decoding.same)
        for value, rule in track(rules, "calibrating")
    )
    return climb(tried, full, whole, epsilon=epsilon, delta=delta)


def answers(predictor: MaskPredictor, rows: Sequence[Tensor], rule: CommitRule, decoding: Decoding) -> list[Answer]:
    """The results of decoding by a rule."""
    done = decoding.decode(predictor, rows, rule)
    return [Answer(row.ids.tolist(), int(row.committed_at.max()) + 1) for row in done]


def places(rows: Sequence[Tensor], mask_id: int, region: Region | None) -> list[list[int]]:
    """The places of the answer in each row."""
    found = [row == mask_id for row in rows]
    return [(open if region is None else region(open[None])[0]).nonzero().flatten().tolist() for open in found]


def compared(
    value: float, rule: CommitRule, found: Sequence[Answer], whole: Sequence[Answer], where: Sequence[list[int]],
    same: Same | None = None,
) -> Tried:  # fmt: skip
    """Counts the answers that differ from full decoding's, at the places `where` or by `same`."""

    def agree(one: Answer, other: Answer, at: list[int]) -> bool:
        if same is not None:
            return same(torch.tensor(one.ids), torch.tensor(other.ids))
        short, long = sorted((len(one.ids), len(other.ids)))
        return all(place >= long or (place < short and one.ids[place] == other.ids[place]) for place in at)

    kept = [agree(*each) for each in zip(found, whole, where, strict=True)]
    return Tried(value, rule, kept.count(False), sum(row.steps for row in found) / len(found))


def climb(
    tried: Iterable[Tried], full: CommitRule, whole: Sequence[Answer], *, epsilon: float, delta: float
) -> Calibration:
    """The calibration: the last rule before the first one that changes too many answers."""
    n, steps = len(whole), sum(row.steps for row in whole) / len(whole)
    kept = Calibration(full, None, epsilon, delta, n, 0, None, steps, steps)
    for each in tried:
        if fixed_sequence([each.changed], n, epsilon, delta) is None:
            break
        bound = upper_bound(each.changed, n, delta)
        kept = replace(
            kept, rule=each.rule, factor=each.value, changed=each.changed, bound=bound, early_steps=each.steps
        )  # fmt: skip
    return kept
